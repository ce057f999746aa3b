"""Keeps Envoy's admin private: pure functions over a parsed bootstrap.

An admin that is not on loopback or a Unix socket is moved to loopback (or refused); what is static in the bootstrap
and would show the admin to others, or take a port of ours, is refused.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kumadp.addresses import is_ip, is_loopback, overlap
from kumadp.bootstrap.admin_address import AdminAddress, TcpAdmin, UnixAdmin
from kumadp.bootstrap.fields import get, items
from kumadp.bootstrap.spelling import double_spellings
from kumadp.bootstrap.static_allowlist import check_public
from kumadp.errors import BootstrapError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LOOPBACK = "127.0.0.1"
OWNER_ONLY = 0o600
DEFAULT_ADMIN_PORT = 9901
_INTERNAL_LISTENERS = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
_SOCKETS = "envoy.extensions.network.socket_interface.default_socket_interface"
_TAKE_OUT = "take it out of the bootstrap"


@dataclass(frozen=True, slots=True)
class Taken:
    """A TCP port that kumadp or CoreDNS binds, and for what."""

    host: str
    port: int
    purpose: str


@dataclass(frozen=True, slots=True)
class Guarded:
    """A bootstrap that keeps the promise, its admin, and what was changed (to be logged loudly)."""

    bootstrap: dict[str, Any]
    admin: AdminAddress
    warnings: tuple[str, ...]


def guard(
    bootstrap: Mapping[str, Any], *, strict: bool = False, admin_port: int = 0, taken: Iterable[Taken] = ()
) -> Guarded:
    """Check and, where needed, change a copy of ``bootstrap``; raises BootstrapError with every problem.

    ``admin_port`` is ``networking.admin.port`` of the Dataplane, 0 when it names none. With ``strict`` an admin that
    is not private is refused instead of moved.
    """
    tree = copy.deepcopy(dict(bootstrap))
    problems = double_spellings(tree)
    if problems:
        # Half of a field would be judged: nothing that is read from here on could be relied on.
        raise BootstrapError(problems)
    warnings: list[str] = []
    admin = _admin(tree, strict, admin_port, problems, warnings)
    if isinstance(admin, TcpAdmin):
        for held in taken:
            if held.port == admin.port and overlap(held.host, admin.host):
                problems.append(
                    Problem(
                        "admin.address",
                        f"port {admin.port} is also used for {held.purpose}",
                        "choose another networking.admin.port",
                    )
                )
    _check_static(tree, admin, tuple(taken), problems)
    _check_extensions(tree, problems)
    _check_sources(tree, problems)
    if problems:
        raise BootstrapError(problems)
    return Guarded(tree, admin, tuple(warnings))


def _admin(
    tree: dict[str, Any], strict: bool, wanted_port: int, problems: list[Problem], warnings: list[str]
) -> AdminAddress:
    path = get(tree, "admin", "address", "pipe", "path")
    if isinstance(path, str) and path:
        if path.startswith("@"):
            problems.append(Problem("admin.address.pipe.path", "an abstract socket has no owner", "use a path"))
        _close_socket(tree["admin"]["address"]["pipe"], path, strict, problems, warnings)
        return UnixAdmin(path)
    host, number = _socket(get(tree, "admin", "address"))
    if not host and not number:
        warnings.append(f"the bootstrap has no admin; one is added on {LOOPBACK}")
    elif not is_loopback(host):
        if strict:
            problems.append(
                Problem("admin.address", f"{host}:{number} is not loopback", "without --strict-admin it is moved there")
            )
        warnings.append(
            f"ENVOY'S ADMIN WAS ASKED FOR ON {host}:{number}, WHICH OTHERS CAN REACH; it is moved to loopback"
        )
        host = "::1" if ":" in host else LOOPBACK
    if wanted_port and wanted_port != number:
        if number:
            warnings.append(f"the bootstrap's admin port {number} gives way to networking.admin.port {wanted_port}")
        number = wanted_port
    found = TcpAdmin(host if is_ip(host) else LOOPBACK, number or DEFAULT_ADMIN_PORT)
    if not isinstance(tree.get("admin"), dict):
        tree["admin"] = {}
    address = get(tree, "admin", "address")
    if not _is_plain(address) or _socket(address) != (found.host, found.port):
        tree["admin"]["address"] = {"socketAddress": {"address": found.host, "portValue": found.port}}
    return found


def _close_socket(pipe: dict[str, Any], path: str, strict: bool, problems: list[Problem], warnings: list[str]) -> None:
    """The admin's Unix socket is for its owner alone. Without a mode Envoy leaves it to the umask."""
    mode = pipe.get("mode", 0)
    if isinstance(mode, str) and re.fullmatch("[0-9]{1,9}", mode):
        mode = int(mode)
    if isinstance(mode, int) and mode and not mode & 0o077:
        return
    pipe["mode"] = OWNER_ONLY
    if not mode:
        return
    shown = f"{mode:o}" if isinstance(mode, int) else repr(mode)
    if strict:
        hint = "without --strict-admin it is closed to them"
        problems.append(Problem("admin.address.pipe.mode", f"{shown} lets others use {path}", hint))
    warnings.append(f"ENVOY'S ADMIN WAS ASKED FOR ON {path} WITH MODE {shown}; only its owner may use it now")


def _check_static(
    tree: Mapping[str, Any], admin: AdminAddress, taken: tuple[Taken, ...], problems: list[Problem]
) -> None:
    listeners = items(get(tree, "staticResources", "listeners"))
    for index, listener in enumerate(listeners):
        path = f"staticResources.listeners[{index}]"
        for host, port in map(_socket, _addresses(listener)):
            for held in taken:
                if port and port == held.port and overlap(host, held.host):
                    problems.append(Problem(path, f"takes port {port}, used for {held.purpose}"))
            if isinstance(admin, TcpAdmin) and port == admin.port and overlap(host, admin.host):
                problems.append(Problem(path, f"takes the admin's port {port}"))
    if not all(map(_private_listener, listeners)):
        problems += check_public(tree, admin)


def _addresses(item: Any) -> Iterator[Any]:
    """Where a listener listens, or what an endpoint stands for: its address and the additional ones."""
    yield get(item, "address")
    for more in items(get(item, "additionalAddresses")):
        yield get(more, "address")


def _private_listener(listener: Any) -> bool:
    """Whether nobody but this host reaches it; what is not understood is public.

    One that is not bound is no exception: a dynamic listener with use_original_dst leads others to it (Envoy docs:
    Listener.use_original_dst), as Kuma's listener for redirected traffic does.
    """
    return all(map(_private_address, _addresses(listener)))


def _private_address(address: Any) -> bool:
    if not isinstance(address, dict) or len(address) != 1:
        return False
    if isinstance(get(address, "pipe", "path"), str):
        # A socket that others may use may be in a directory that another container has, too.
        mode = get(address, "pipe", "mode") or 0
        return isinstance(mode, int) and not mode & 0o077
    host = _socket(address)[0]
    return _is_plain(address) and is_ip(host) and is_loopback(host)


def _is_plain(address: Any) -> bool:
    """Whether host and port are all; another field may lead elsewhere (a resolver, another network namespace)."""
    inside = get(address, "socketAddress")
    plain = isinstance(inside, dict) and {*inside} <= {"address", "portValue", "port_value", "protocol"}
    return plain and len(address) == 1 and get(inside, "protocol") in (None, "TCP", "UDP", 0, 1)


def _socket(address: Any) -> tuple[str, int]:
    """Host and port; protobuf's JSON takes a number as text too. Port 0 where there is none."""
    port = get(address, "socketAddress", "portValue")
    number = int(port) if isinstance(port, int) or (isinstance(port, str) and re.fullmatch("[0-9]{1,9}", port)) else 0
    return str(get(address, "socketAddress", "address") or ""), number


def _check_sources(tree: Mapping[str, Any], problems: list[Problem]) -> None:
    """Listeners and clusters come by the one stream (ADS) or from files: what comes past it, nobody would look at."""
    for name in ("ldsConfig", "cdsConfig"):
        if get(tree, "dynamicResources", name, "apiConfigSource") is not None:
            problems.append(Problem(f"dynamicResources.{name}.apiConfigSource", "goes past adsConfig", "use ads"))
    for name in ("ldsResourcesLocator", "cdsResourcesLocator"):
        if get(tree, "dynamicResources", name) not in (None, ""):
            problems.append(Problem(f"dynamicResources.{name}", "goes past adsConfig", _TAKE_OUT))
    for name in ("configSources", "defaultConfigSource"):
        if get(tree, name):
            problems.append(Problem(name, "goes past adsConfig", _TAKE_OUT))


def _check_extensions(tree: Mapping[str, Any], problems: list[Problem]) -> None:
    """What opens sockets of a kind that cannot be judged: Kuma 2.8 to 2.14 and 3.0-dev send none of them."""
    for index, extension in enumerate(items(get(tree, "bootstrapExtensions"))):
        kind = str(get(extension, "typedConfig", "@type"))
        if kind != _INTERNAL_LISTENERS:
            path = f"bootstrapExtensions[{index}]"
            problems.append(Problem(path, f"of type {kind[:120]!r} may open further ways to Envoy", _TAKE_OUT))
    if get(tree, "defaultSocketInterface") not in (None, "", _SOCKETS):
        problems.append(Problem("defaultSocketInterface", "is not Envoy's own", _TAKE_OUT))
