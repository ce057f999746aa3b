"""The built-in Corefile, in a shape for each kind of CoreDNS, and what templates may use."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.addresses import with_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kumadp.dns.resolvconf import ResolvConf

_CODES = ("NOTIMP", "FORMERR", "NXDOMAIN", "SERVFAIL", "REFUSED")
# CoreDNS takes 15 upstreams for one `forward`, and Envoy is the first.
_MAX_SERVERS = 14
_PORT = 53
# CoreDNS refuses what it has no plugin for, and so does the embedded resolver: an answer that depends on nobody else.
HEALTH_NAME = "health.kumadp.invalid"


class Way(enum.Enum):
    """How a CoreDNS goes on to the resolvers where Envoy knows nothing; the best first."""

    ALTERNATE = "the alternate plugin"
    FAILOVER = "forward with next and failover"
    NEXT = "forward with next"


@dataclass(frozen=True, slots=True)
class CorefileFacts:
    """The DNS configuration that templates may use; the field names in templates are Kuma's."""

    port: int
    envoy_port: int
    prometheus_port: int
    logging: bool
    binary: str
    config_dir: str
    template: str = ""

    def variables(self) -> Mapping[str, object]:
        """Kuma's names (contract of kuma-dp 2.8: the DNS configuration is the template's root)."""
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
    facts: CorefileFacts, way: Way, servers: Sequence[str], suffixes: Iterable[str], addresses: Sequence[str] = ()
) -> str:
    """A Corefile that asks Envoy first and ``servers``, the host's resolvers, where Envoy knows nothing.

    The resolvers are upstreams beside Envoy too: a `forward` whose one upstream is silent ends in SERVFAIL without a
    look at what follows it. Names below ``suffixes`` have a block of their own, which knows Envoy alone: its DNS filter
    says NXDOMAIN to the AAAA of a name that it knows, and to names in another case than it knows them in.

    CoreDNS listens on ``addresses``, on all without any. The kernel prefers a socket on an address to one on all: what
    is bound there by somebody else gets no query for these addresses but from the moment on in which CoreDNS ends.
    """
    envoy = f"127.0.0.1:{facts.envoy_port}"
    bind = [f"bind {' '.join(addresses)}"] if addresses else []
    shared = [*bind, f"prometheus localhost:{facts.prometheus_port}", "errors", *(["log"] if facts.logging else [])]
    # Envoy's filter speaks UDP alone. Where nobody else can be asked, whether it is well does not matter.
    alone = _forward([envoy], ["max_fails 0", "prefer_udp"])
    health = _block([f"{HEALTH_NAME}.:{facts.port}"], bind)
    mesh = health + _block([f"{suffix}.:{facts.port}" for suffix in suffixes], [*alone, *shared])
    if not servers:
        return mesh + _block([f".:{facts.port}"], [*alone, *shared])
    others = list(servers)[:_MAX_SERVERS]
    first = ["policy sequential", "prefer_udp"]
    if way is Way.ALTERNATE:
        fallback = [f"alternate {','.join(_CODES)} . {' '.join(others)}"]
    else:
        first.append(f"next {' '.join(_CODES)}")
        second = ["policy sequential", *(["failover SERVFAIL REFUSED"] if way is Way.FAILOVER else [])]
        fallback = _forward(others, second)
    return mesh + _block([f".:{facts.port}"], [*_forward([envoy, *others], first), *fallback, *shared])


def _forward(upstreams: Sequence[str], options: Sequence[str]) -> list[str]:
    return [f"forward . {' '.join(upstreams)} {{", *(f"    {option}" for option in options), "}"]


def _block(keys: Sequence[str], lines: Sequence[str]) -> str:
    if not keys:
        return ""
    return f"{' '.join(keys)} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def upstreams(conf: ResolvConf) -> tuple[str, ...]:
    """The name servers of a resolv.conf as `forward` takes them, zones included."""
    return tuple(host if port == _PORT else with_port(host, port) for host, port in conf.servers)
