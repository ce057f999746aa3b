"""The transparent proxy configuration (Kuma 2.9 to 2.14): merge of its files, and encoding for the control plane.

The files are those of ``kumactl install transparent-proxy``; most of their keys are for iptables and ignored here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from msgspec import Struct

from kumadp import yamltext
from kumadp.errors import Problem, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BOUNDS = yamltext.Bounds(size=1 << 20, depth=30)
FAMILIES = ("dualstack", "ipv4")


class Redirected(Struct, frozen=True):
    """Traffic in one direction: whether it is redirected, and to which port of Envoy."""

    enabled: bool
    port: int

    def wire(self) -> dict[str, Any]:
        """Encode it as Kuma does."""
        return {"enabled": self.enabled, "port": self.port}


class TransparentProxy(Struct, frozen=True):
    """The traffic that is redirected on this host; the defaults are Kuma's.

    ``networks`` are virtual networks, such as ``docker0:10.0.0.0/8``. The port that DNS is redirected to is a setting
    of kumadp instead (Kuma 2.13: ``--dns-envoy-port``).
    """

    ip_family_mode: str = "dualstack"
    inbound: Redirected = Redirected(enabled=True, port=15006)
    outbound: Redirected = Redirected(enabled=True, port=15001)
    networks: tuple[str, ...] = ()

    @property
    def dual_stack(self) -> bool:
        """Whether IPv6 is redirected as well."""
        return self.ip_family_mode != "ipv4"

    def wire(self, dns: Redirected) -> dict[str, Any]:
        """Return the ``dataplaneConfig`` of a bootstrap request; ``dns`` is the redirection of DNS."""
        redirect = {"inbound": self.inbound.wire(), "outbound": self.outbound.wire(), "dns": dns.wire()}
        networks = {"networks": list(self.networks)} if self.networks else {}
        return {"ipFamilyMode": self.ip_family_mode, "redirect": {**redirect, "vnet": networks}}


def read_transparent(texts: Iterable[tuple[str, str]]) -> TransparentProxy:
    """Merge ``(source, YAML)`` texts over Kuma's defaults; later ones override earlier ones.

    Keys may be in any letter case, as in Go; null and unknown keys are ignored (Kuma 2.13). Raises SettingsError with
    all problems.
    """
    layers = _Layers()
    for source, text in texts:
        layers.add(source, text)
    if layers.problems:
        raise SettingsError(layers.problems)
    values = layers.values
    default = TransparentProxy()
    return TransparentProxy(
        str(values.get("ipfamilymode", default.ip_family_mode)),
        _redirected(values, "redirect.inbound", default.inbound),
        _redirected(values, "redirect.outbound", default.outbound),
        tuple(values.get("redirect.vnet.networks", default.networks)),
    )


def _redirected(values: dict[str, Any], path: str, default: Redirected) -> Redirected:
    return Redirected(values.get(f"{path}.enabled", default.enabled), values.get(f"{path}.port", default.port))


class _Layers:
    """The known values of all texts so far, by their path in lower case."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
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
            self._add_problem(shown, "is not a mapping")
            return
        for name, value in tree.items():
            below = f"{path}{str(name).lower()}"
            shown_below = f"{shown}.{name}" if shown else str(name)
            if value is None:
                continue
            if below in _READERS:
                self._read(below, shown_below, value)
            elif any(key.startswith(below + ".") for key in _READERS):
                self._mapping(value, below + ".", shown_below)

    def _read(self, path: str, shown: str, value: object) -> None:
        read, expected = _READERS[path]
        try:
            self.values[path] = read(value)
        except (ValueError, TypeError):
            self._add_problem(shown, f"{value!r} is not {expected}")

    def _add_problem(self, path: str, message: str) -> None:
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
    "redirect.vnet.networks": (_networks, "a list of strings"),
}
