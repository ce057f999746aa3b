"""The built-in Corefile, in a variant for each kind of CoreDNS, and the variables for templates."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.addresses import with_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kumadp.dns.resolvconf import ResolvConf

_CODES = ("NOTIMP", "FORMERR", "NXDOMAIN", "SERVFAIL", "REFUSED")
# CoreDNS accepts 15 upstreams in one `forward`, and Envoy is the first.
_MAX_SERVERS = 14
_PORT = 53
# CoreDNS answers REFUSED if a block has no plugin, and so does the embedded resolver: no other server is involved.
HEALTH_NAME = "health.kumadp.invalid"


class ForwardMethod(enum.Enum):
    """How CoreDNS forwards names that Envoy does not know to the resolvers; the best first."""

    ALTERNATE = "the alternate plugin"
    FAILOVER = "forward with next and failover"
    NEXT = "forward with next"


class CorefileFacts(Struct, frozen=True):
    """The DNS configuration for templates; `variables` has it under Kuma's names."""

    port: int
    envoy_port: int
    prometheus_port: int
    logging: bool
    binary: str
    config_dir: str
    template: str = ""

    def variables(self) -> Mapping[str, object]:
        """Return the values by Kuma's names (contract of kuma-dp 2.8: the DNS configuration is the template's root)."""
        return {
            "Enabled": True,
            "CoreDNSPort": self.port,
            "EnvoyDNSPort": self.envoy_port,
            "PrometheusPort": self.prometheus_port,
            "CoreDNSLogging": self.logging,
            "CoreDNSBinaryPath": self.binary,
            "CoreDNSConfigTemplatePath": self.template,
            "ConfigDir": self.config_dir,
            "ProxyPort": 0,
        }


def built_in(
    facts: CorefileFacts,
    method: ForwardMethod,
    servers: Sequence[str],
    suffixes: Iterable[str],
    addresses: Sequence[str] = (),
) -> str:
    """Return a Corefile that queries Envoy first, and ``servers``, the host's resolvers, for names unknown to Envoy.

    The resolvers are upstreams next to Envoy too: a `forward` whose only upstream is silent ends in SERVFAIL, and later
    plugins are not reached. Names below ``suffixes`` have a separate block with Envoy as the only upstream: its DNS
    filter answers NXDOMAIN to AAAA queries for names that it knows, and to names in another letter case.

    CoreDNS listens on ``addresses``, on all if there are none. The kernel prefers a socket on an address to one on all:
    the fallback on all addresses gets queries for these addresses only once CoreDNS has ended.
    """
    envoy = f"127.0.0.1:{facts.envoy_port}"
    bind = [f"bind {' '.join(addresses)}"] if addresses else []
    shared = [*bind, f"prometheus localhost:{facts.prometheus_port}", "errors", *(["log"] if facts.logging else [])]
    # Envoy's filter supports UDP only. Health checks (max_fails) are useless if there is no other upstream.
    envoy_only = _forward([envoy], ["max_fails 0", "prefer_udp"])
    health = _block([f"{HEALTH_NAME}.:{facts.port}"], bind)
    mesh = health + _block([f"{suffix}.:{facts.port}" for suffix in suffixes], [*envoy_only, *shared])
    if not servers:
        return mesh + _block([f".:{facts.port}"], [*envoy_only, *shared])
    others = list(servers)[:_MAX_SERVERS]
    first = ["policy sequential", "prefer_udp"]
    if method is ForwardMethod.ALTERNATE:
        fallback = [f"alternate {','.join(_CODES)} . {' '.join(others)}"]
    else:
        first.append(f"next {' '.join(_CODES)}")
        second = ["policy sequential", *(["failover SERVFAIL REFUSED"] if method is ForwardMethod.FAILOVER else [])]
        fallback = _forward(others, second)
    return mesh + _block([f".:{facts.port}"], [*_forward([envoy, *others], first), *fallback, *shared])


def _forward(upstreams: Sequence[str], options: Sequence[str]) -> list[str]:
    return [f"forward . {' '.join(upstreams)} {{", *(f"    {option}" for option in options), "}"]


def _block(keys: Sequence[str], lines: Sequence[str]) -> str:
    if not keys:
        return ""
    return f"{' '.join(keys)} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def upstreams(conf: ResolvConf) -> tuple[str, ...]:
    """Return the name servers of a resolv.conf in the syntax of `forward`, with zones."""
    return tuple(host if port == _PORT else with_port(host, port) for host, port in conf.servers)
