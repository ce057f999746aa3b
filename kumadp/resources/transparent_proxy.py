"""The transparent proxy configuration (Kuma 2.9 to 2.14): files laid over each other, and what is told of them.

The files are those of ``kumactl install transparent-proxy``; most of their keys are for iptables and pass unread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from kumadp import yamltext
from kumadp.errors import Problem, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BOUNDS = yamltext.Bounds(size=1 << 20, depth=30)
FAMILIES = ("dualstack", "ipv4")


@dataclass(frozen=True, slots=True)
class Redirected:
    """Traffic in one direction: whether it is redirected, and to which port of Envoy."""

    enabled: bool
    port: int

    def wire(self) -> dict[str, Any]:
        """As Kuma writes it."""
        return {"enabled": self.enabled, "port": self.port}


@dataclass(frozen=True, slots=True)
class TransparentProxy:
    """What is redirected on this host; the defaults are Kuma's. ``networks`` are virtual ones, ``docker0:10.0.0.0/8``.

    Where DNS is redirected to is not read: it is kumadp's own setting (Kuma 2.13: ``--dns-envoy-port``).
    """

    ip_family_mode: str = "dualstack"
    inbound: Redirected = Redirected(enabled=True, port=15006)
    outbound: Redirected = Redirected(enabled=True, port=15001)
    networks: tuple[str, ...] = ()

    @property
    def dual_stack(self) -> bool:
        """Whether IPv6 is redirected too."""
        return self.ip_family_mode != "ipv4"

    def wire(self, dns: Redirected) -> dict[str, Any]:
        """The ``dataplaneConfig`` of a bootstrap request."""
        redirect = {"inbound": self.inbound.wire(), "outbound": self.outbound.wire(), "dns": dns.wire()}
        networks = {"networks": list(self.networks)} if self.networks else {}
        return {"ipFamilyMode": self.ip_family_mode, "redirect": {**redirect, "vnet": networks}}


def read_transparent(texts: Iterable[tuple[str, str]]) -> TransparentProxy:
    """Kuma's defaults under ``(source, YAML)`` texts, where a later one wins; raises SettingsError, all at once.

    Names of keys may be in any case, as Go reads them; null and what is not known are passed over (Kuma 2.13).
    """
    layers = _Layers()
    for source, text in texts:
        layers.add(source, text)
    if layers.problems:
        raise SettingsError(layers.problems)
    found = layers.found
    default = TransparentProxy()
    return TransparentProxy(
        str(found.get("ipfamilymode", default.ip_family_mode)),
        _redirected(found, "redirect.inbound", default.inbound),
        _redirected(found, "redirect.outbound", default.outbound),
        tuple(found.get("redirect.vnet.networks", default.networks)),
    )


def _redirected(found: dict[str, Any], path: str, default: Redirected) -> Redirected:
    return Redirected(found.get(f"{path}.enabled", default.enabled), found.get(f"{path}.port", default.port))


class _Layers:
    """The known values of all texts so far, by their path in lower case."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._source = ""

    def add(self, source: str, text: str) -> None:
        self._source = source
        try:
            tree = yamltext.load(text, BOUNDS)
        except (yaml.YAMLError, ValueError) as error:
            reason = yamltext.reason(error)
            self.problems.append(Problem("", f"is not YAML: {reason}", file=source, line=yamltext.line(error)))
            return
        if tree is not None:
            self._mapping(tree, "", "")

    def _mapping(self, tree: object, path: str, shown: str) -> None:
        if not isinstance(tree, dict):
            self._say(shown, "is not a mapping")
            return
        for name, value in tree.items():
            below = f"{path}{str(name).lower()}"
            told = f"{shown}.{name}" if shown else str(name)
            if value is None:
                continue
            if below in _READERS:
                self._take(below, told, value)
            elif any(known.startswith(below + ".") for known in _READERS):
                self._mapping(value, below + ".", told)

    def _take(self, path: str, shown: str, value: object) -> None:
        read, right = _READERS[path]
        try:
            self.found[path] = read(value)
        except (ValueError, TypeError):
            self._say(shown, f"{value!r} is not {right}")

    def _say(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message, file=self._source))


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    port = int(value)
    if not 1 <= port <= 65535:
        raise ValueError
    return port


def _family(value: object) -> str:
    family = str(value).lower() or FAMILIES[0]
    if family not in FAMILIES:
        raise ValueError
    return family


def _networks(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return tuple(value)


_FLAG: tuple[Callable[[object], Any], str] = (_boolean, "true or false")
_PORT: tuple[Callable[[object], Any], str] = (_port, "a port, 1 to 65535")
_READERS: dict[str, tuple[Callable[[object], Any], str]] = {
    "ipfamilymode": (_family, f"one of {', '.join(FAMILIES)}"),
    "redirect.inbound.enabled": _FLAG,
    "redirect.inbound.port": _PORT,
    "redirect.outbound.enabled": _FLAG,
    "redirect.outbound.port": _PORT,
    "redirect.vnet.networks": (_networks, "a list of texts"),
}
