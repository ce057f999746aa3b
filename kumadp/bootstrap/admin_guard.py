"""Guard that keeps Envoy's admin private: pure functions over a parsed bootstrap.

An admin that is not on loopback or a Unix socket is moved to loopback (or refused). Static resources that would expose
the admin to others, or use a port of kumadp, are refused.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

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
_REMOVE = "remove it from the bootstrap"


class ReservedPort(Struct, frozen=True):
    """A TCP port that kumadp or CoreDNS binds, and its purpose."""

    host: str
    port: int
    purpose: str


class GuardedBootstrap(Struct, frozen=True):
    """A bootstrap with a private admin, the admin's address, and what was changed (to be logged as warnings)."""

    bootstrap: dict[str, Any]
    admin: AdminAddress
    warnings: tuple[str, ...]


def guard(
    bootstrap: Mapping[str, Any], *, strict: bool = False, admin_port: int = 0, reserved: Iterable[ReservedPort] = ()
) -> GuardedBootstrap:
    """Check and, if needed, change a copy of ``bootstrap``; raises BootstrapError with every problem.

    ``admin_port`` is ``networking.admin.port`` of the Dataplane, 0 if it names none. With ``strict`` an admin that is
    not private is refused instead of moved. ``reserved`` ports may not be used by static listeners.
    """
    tree = copy.deepcopy(dict(bootstrap))
    problems = double_spellings(tree)
    if problems:
        # Of such a field only one half would be checked.
        raise BootstrapError(problems)
    warnings: list[str] = []
    admin = _admin(tree, strict, admin_port, problems, warnings)
    if isinstance(admin, TcpAdmin):
        for used in reserved:
            if used.port == admin.port and overlap(used.host, admin.host):
                problems.append(
                    Problem(
                        "admin.address",
                        f"port {admin.port} is also used for {used.purpose}",
                        "choose another networking.admin.port",
                    )
                )
    _check_static(tree, admin, tuple(reserved), problems)
    _check_extensions(tree, problems)
    _check_sources(tree, problems)
    if problems:
        raise BootstrapError(problems)
    return GuardedBootstrap(tree, admin, tuple(warnings))


def _admin(
    tree: dict[str, Any], strict: bool, dataplane_port: int, problems: list[Problem], warnings: list[str]
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
            f"ENVOY'S ADMIN WAS REQUESTED ON {host}:{number}, WHICH OTHERS CAN REACH; it is moved to loopback"
        )
        host = "::1" if ":" in host else LOOPBACK
    if dataplane_port and dataplane_port != number:
        if number:
            warnings.append(
                f"the bootstrap's admin port {number} is replaced by networking.admin.port {dataplane_port}"
            )
        number = dataplane_port
    admin = TcpAdmin(host if is_ip(host) else LOOPBACK, number or DEFAULT_ADMIN_PORT)
    if not isinstance(tree.get("admin"), dict):
        tree["admin"] = {}
    address = get(tree, "admin", "address")
    if not _is_plain(address) or _socket(address) != (admin.host, admin.port):
        tree["admin"]["address"] = {"socketAddress": {"address": admin.host, "portValue": admin.port}}
    return admin


def _close_socket(pipe: dict[str, Any], path: str, strict: bool, problems: list[Problem], warnings: list[str]) -> None:
    """Restrict the admin's Unix socket to its owner. Without a mode Envoy leaves it to the umask."""
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
    warnings.append(f"ENVOY'S ADMIN WAS REQUESTED ON {path} WITH MODE {shown}; only its owner may use it now")


def _check_static(
    tree: Mapping[str, Any], admin: AdminAddress, reserved: tuple[ReservedPort, ...], problems: list[Problem]
) -> None:
    listeners = items(get(tree, "staticResources", "listeners"))
    for index, listener in enumerate(listeners):
        path = f"staticResources.listeners[{index}]"
        for host, port in map(_socket, _addresses(listener)):
            for used in reserved:
                if port and port == used.port and overlap(host, used.host):
                    problems.append(Problem(path, f"takes port {port}, used for {used.purpose}"))
            if isinstance(admin, TcpAdmin) and port == admin.port and overlap(host, admin.host):
                problems.append(Problem(path, f"takes the admin's port {port}"))
    if not all(map(_private_listener, listeners)):
        problems += check_public(tree, admin)


def _addresses(item: Any) -> Iterator[Any]:
    """Yield the address of a listener or an endpoint, and the additional ones."""
    yield get(item, "address")
    for more in items(get(item, "additionalAddresses")):
        yield get(more, "address")


def _private_listener(listener: Any) -> bool:
    """Return whether only this host reaches it; an unknown address is public.

    A listener that is not bound is no exception: a dynamic listener with use_original_dst leads others to it (Envoy
    docs: Listener.use_original_dst), as Kuma's listener for redirected traffic does.
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
    """Return whether it has host and port only; another field may lead elsewhere (a resolver, a network namespace)."""
    socket = get(address, "socketAddress")
    plain = isinstance(socket, dict) and {*socket} <= {"address", "portValue", "port_value", "protocol"}
    return plain and len(address) == 1 and get(socket, "protocol") in (None, "TCP", "UDP", 0, 1)


def _socket(address: Any) -> tuple[str, int]:
    """Return host and port; protobuf's JSON allows a number as text. Port 0 if there is no port."""
    port = get(address, "socketAddress", "portValue")
    number = int(port) if isinstance(port, int) or (isinstance(port, str) and re.fullmatch("[0-9]{1,9}", port)) else 0
    return str(get(address, "socketAddress", "address") or ""), number


def _check_sources(tree: Mapping[str, Any], problems: list[Problem]) -> None:
    """Refuse sources other than the one stream (ADS) or files: kumadp would not see what they send."""
    for name in ("ldsConfig", "cdsConfig"):
        if get(tree, "dynamicResources", name, "apiConfigSource") is not None:
            problems.append(Problem(f"dynamicResources.{name}.apiConfigSource", "bypasses adsConfig", "use ads"))
    for name in ("ldsResourcesLocator", "cdsResourcesLocator"):
        if get(tree, "dynamicResources", name) not in (None, ""):
            problems.append(Problem(f"dynamicResources.{name}", "bypasses adsConfig", _REMOVE))
    for name in ("configSources", "defaultConfigSource"):
        if get(tree, name):
            problems.append(Problem(name, "bypasses adsConfig", _REMOVE))


def _check_extensions(tree: Mapping[str, Any], problems: list[Problem]) -> None:
    """Refuse extensions that open sockets which cannot be checked: Kuma 2.8 to 2.14 and 3.0-dev send none of them."""
    for index, extension in enumerate(items(get(tree, "bootstrapExtensions"))):
        kind = str(get(extension, "typedConfig", "@type"))
        if kind != _INTERNAL_LISTENERS:
            path = f"bootstrapExtensions[{index}]"
            problems.append(Problem(path, f"of type {kind[:120]!r} may open further ways to Envoy", _REMOVE))
    if get(tree, "defaultSocketInterface") not in (None, "", _SOCKETS):
        problems.append(Problem("defaultSocketInterface", "is not Envoy's own", _REMOVE))
