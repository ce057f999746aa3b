"""``kumadp wait``: waits until the data plane on this host is ready, and logs what it waits for."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kumadp.addresses import is_loopback
from kumadp.cli.logs import open_logs
from kumadp.cli.options import command_with_options, typed_names
from kumadp.cli.remote import reason
from kumadp.daemon.control_client import query_status
from kumadp.daemon.instances import find
from kumadp.errors import Problem, SettingsError, WaitTimeout, on_one_line
from kumadp.host.net.unix_http import exchange
from kumadp.settings.resolve import resolve
from kumadp.settings.values import write_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.daemon.instances import Running
    from kumadp.settings.model import Settings

DEFAULT_URL = "http://localhost:9901/ready"
# Minimum timeout of a status query (seconds): shorter ones would fail on a busy host.
_MIN_STATUS_TIMEOUT = 0.5
log = logging.getLogger("kumadp.wait")


@command_with_options("wait")
def wait(**flags: object) -> None:
    """Wait until a data plane on this host is ready, and log what it waits for.

    By default it waits for all data planes of this user (with KUMA_DATAPLANE_NAME only for that one). Those outside the
    usual runtime directories count only if there are none inside. If none runs, it queries
    http://localhost:9901/ready, as kuma-dp does. --name waits for one data plane, which may be started later. --url and
    --unix-socket query only that address.

    Exit code 0 if ready, 75 if not ready within --timeout, or not ready now with --once.
    """
    resolved = resolve("wait", flags, os.environ, typed=typed_names())
    settings = resolved.settings
    check = _checker(settings, resolved.origin)
    logs = open_logs(settings, auto="text")
    try:
        for warning in resolved.warnings:
            log.warning("%s", warning)
        _wait(check, settings)
    finally:
        logs.close()


def _wait(check: Callable[[], str], settings: Settings) -> None:
    end = time.monotonic() + settings.timeout
    last_reason = ""
    while reason := check():
        if settings.once:
            raise WaitTimeout(f"not ready: {reason}")
        if reason != last_reason:
            log.info("waiting: %s", reason)
            last_reason = reason
        remaining = end - time.monotonic()
        if remaining <= 0:
            raise WaitTimeout(f"not ready within {write_duration(settings.timeout)}: {reason}")
        time.sleep(min(settings.check_frequency, remaining))
    log.info("ready")


def _checker(settings: Settings, origin: Mapping[str, str]) -> Callable[[], str]:
    """Return the check that is repeated. It returns why the data plane is not ready; empty if it is."""
    name = settings.name if origin["name"].startswith("flag ") else ""
    targets = [option for option, value in (("--url", settings.url), ("--name", name)) if value]
    # Kuma 2.14: --unix-socket takes precedence over --url.
    if settings.unix_socket:
        targets = [option for option in targets if option != "--url"] + ["--unix-socket"]
    if len(targets) > 1:
        raise SettingsError([Problem(" and ".join(targets), "exclude each other", "keep one of them")])
    if settings.unix_socket:
        path = settings.unix_socket
        return lambda: _query(_connect_unix(path), "/ready", path, settings.request_timeout)
    check_url = _url_checker(settings.url or DEFAULT_URL, settings.request_timeout)
    if settings.url:
        return check_url
    return lambda: _check_instances(settings, None if name else check_url)


def _url_checker(url: str, timeout: float) -> Callable[[], str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        host, port = "", 0
    if not is_loopback(host.removesuffix(".")) or parts.scheme != "http" or not url.isprintable() or " " in url:
        # Kuma 2.14 accepts only loopback hosts: the answer is for the workload of this host.
        hint = f"write one like {DEFAULT_URL}"
        raise SettingsError([Problem("--url", f"{url!r} is not an http address on loopback", hint)])
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def connect(timeout: float) -> socket.socket:
        return socket.create_connection((host, port), timeout)

    return lambda: _query(connect, target, url, timeout, parts.netloc.rpartition("@")[2])


def _connect_unix(path: str) -> Callable[[float], socket.socket]:
    def connect(timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    return connect


def _check_instances(settings: Settings, fallback: Callable[[], str] | None) -> str:
    """Return why the kumadp of that name, or one of all that run here, is not ready; empty if all are.

    ``fallback`` is called if no kumadp is visible. None: there is always one to wait for, so that a data plane that is
    started later is never confused with another one that already runs.
    """
    search = find(os.environ)
    if not search.running and fallback is not None:
        return fallback()
    statuses = [_status(instance, settings.request_timeout) for instance in search.nearest(settings.name)]
    if statuses:
        return "; ".join(f"{status['name']}: {_why(status)}" for status in statuses if not status.get("ready"))
    others = sorted(str(_status(instance, settings.request_timeout)["name"]) for instance in search.running)
    return (
        f"{settings.name}: no kumadp of that name runs here that this user can see"
        + (f"; running: {', '.join(others)}" if others else "")
        + search.notes()
    )


def _status(instance: Running, timeout: float) -> dict[str, Any]:
    try:
        status = query_status(instance.path, max(timeout, _MIN_STATUS_TIMEOUT), instance.uid)
    except OSError as error:
        return {"name": instance.name, "reasons": [f"its control socket does not answer: {reason(error)}"]}
    return {**status, "name": on_one_line(status["name"])}


def _why(status: Mapping[str, Any]) -> str:
    return on_one_line(", ".join(status.get("reasons") or [str(status.get("phase"))]))


def _query(
    connect: Callable[[float], socket.socket], target: str, where: str, timeout: float, host: str = "localhost"
) -> str:
    deadline = time.monotonic() + timeout
    try:
        with connect(timeout) as sock:
            status, _ = exchange(sock, "GET", target, deadline, host=host, head_only=True)
    except OSError as error:
        return f"{where}: {reason(error)}"
    return "" if status == 200 else f"{where} answers {status}"
