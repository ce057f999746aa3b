"""The Corefile: the user's template, the control plane's, or a built-in one that fits the binary's plugins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.errors import Problem, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CODES = "NOTIMP FORMERR NXDOMAIN SERVFAIL REFUSED"
_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CorefileFacts:
    """The DNS configuration that templates may use; the field names in templates are Kuma's."""

    port: int
    envoy_port: int
    prometheus_port: int
    logging: bool
    binary: str
    config_dir: str

    def variables(self) -> Mapping[str, object]:
        """Kuma's names (contract of kuma-dp 2.8: the DNS configuration is the template's root)."""
        return {
            "Enabled": True,
            "CoreDNSPort": self.port,
            "EnvoyDNSPort": self.envoy_port,
            "PrometheusPort": self.prometheus_port,
            "CoreDNSLogging": self.logging,
            "CoreDNSBinaryPath": self.binary,
            "CoreDNSConfigTemplatePath": "",
            "ConfigDir": self.config_dir,
            "ProxyPort": 0,
        }


def built_in(facts: CorefileFacts, plugins: frozenset[str], resolv_conf: Path) -> str:
    """A Corefile that asks Envoy first and the host's resolvers where Envoy knows nothing.

    With the ``alternate`` plugin in one block; without it by ``forward ... next`` (CoreDNS 1.11.4 and later), where
    names below ``mesh`` never go to the resolvers. A resolv.conf without name servers is left out: CoreDNS would not
    start with it.
    """
    envoy = f"127.0.0.1:{facts.envoy_port}"
    shared = f"    prometheus localhost:{facts.prometheus_port}\n    errors\n" + ("    log\n" if facts.logging else "")
    has_resolvers = _has_resolvers(resolv_conf)
    if "alternate" in plugins:
        fallback = f"    alternate {_CODES.replace(' ', ',')} . {resolv_conf}\n" if has_resolvers else ""
        return f".:{facts.port} {{\n{_to_envoy(envoy)}{fallback}{shared}}}\n"
    mesh = f"mesh:{facts.port} {{\n{_to_envoy(envoy)}{shared}}}\n"
    if not has_resolvers:
        return f"{mesh}.:{facts.port} {{\n{_to_envoy(envoy)}{shared}}}\n"
    rest = f"{_to_envoy(envoy, f'next {_CODES}')}    forward . {resolv_conf}\n"
    return f"{mesh}.:{facts.port} {{\n{rest}{shared}}}\n"


def _to_envoy(envoy: str, *more: str) -> str:
    """Envoy's DNS filter speaks UDP alone, and answers or is not there: CoreDNS' own health checks are off."""
    options = "".join(f"        {line}\n" for line in ("max_fails 0", "prefer_udp", *more))
    return f"    forward . {envoy} {{\n{options}    }}\n"


def _has_resolvers(resolv_conf: Path) -> bool:
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split()[:1] == ["nameserver"] and len(line.split()) > 1 for line in lines)


def render(template: str, facts: CorefileFacts, source: str) -> str:
    """A Go template with ``{{ .Field }}`` and ``{{ if .Field }} ... {{ else }} ... {{ end }}``.

    Raises SettingsError naming the line where the template uses anything else.
    """
    variables = facts.variables()
    out: list[str] = []
    shown = [True]
    position = 0
    trim_next = False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim_next else text
        text = text.rstrip() if match[1] else text
        trim_next = bool(match[3])
        position = match.end()
        if all(shown):
            out.append(text)
        if not _act(match[2], variables, shown, out):
            line = template[: match.start()].count("\n") + 1
            raise SettingsError(
                [
                    Problem(
                        "Corefile template",
                        f"{{{{ {match[2]} }}}} is not understood",
                        "use .Field, if, else, end",
                        source,
                        line,
                    )
                ]
            )
    if len(shown) > 1:
        raise SettingsError([Problem("Corefile template", "an {{ if }} has no {{ end }}", file=source)])
    rest = template[position:]
    out.append(rest.lstrip() if trim_next else rest)
    return "".join(out)


def _act(action: str, variables: Mapping[str, object], shown: list[bool], out: list[str]) -> bool:
    if action.startswith("/*"):
        return True
    if action == "end" and len(shown) > 1:
        shown.pop()
    elif action == "else" and len(shown) > 1:
        shown[-1] = not shown[-1]
    elif action.startswith("if .") and action[4:] in variables:
        shown.append(bool(variables[action[4:]]))
    elif action.startswith(".") and action[1:] in variables:
        if all(shown):
            value = variables[action[1:]]
            out.append(str(value).lower() if isinstance(value, bool) else str(value))
    else:
        return False
    return True
