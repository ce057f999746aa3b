"""``kumadp wait``: until the data plane on this host is ready, saying what it waits for."""

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
from kumadp.daemon.control import ask_status
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
_LEAST_FOR_STATUS = 0.5
log = logging.getLogger("kumadp.wait")


@command_with_options("wait")
def wait(**flags: object) -> None:
    """Wait until a data plane on this host is ready, and say what it waits for.

    --url and --unix-socket query just that. --name waits for the data plane of that name, which may be started later.
    Without them all data planes of this user must be ready (KUMA_DATAPLANE_NAME: that one alone); those outside the
    usual runtime directories count only if there are none inside. If none runs, http://localhost:9901/ready is queried,
    as kuma-dp does.

    Exit code 0 when ready, 75 when not within --timeout, or with --once not now.
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
    told = ""
    while reason := check():
        if settings.once:
            raise WaitTimeout(f"not ready: {reason}")
        if reason != told:
            log.info("waiting: %s", reason)
            told = reason
        left = end - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"not ready within {write_duration(settings.timeout)}: {told}")
        time.sleep(min(settings.check_frequency, left))
    log.info("ready")


def _checker(settings: Settings, origin: Mapping[str, str]) -> Callable[[], str]:
    """What to ask each time: returns why it is not ready, empty when it is."""
    named = settings.name if origin["name"].startswith("flag ") else ""
    asked = [option for option, value in (("--url", settings.url), ("--name", named)) if value]
    # Kuma 2.14: --unix-socket goes before --url.
    if settings.unix_socket:
        asked = [option for option in asked if option != "--url"] + ["--unix-socket"]
    if len(asked) > 1:
        raise SettingsError([Problem(" and ".join(asked), "say different things to wait for", "leave all but one out")])
    if settings.unix_socket:
        path = settings.unix_socket
        return lambda: _ask(_connect_unix(path), "/ready", path, settings.request_timeout)
    ask_url = _url_checker(settings.url or DEFAULT_URL, settings.request_timeout)
    if settings.url:
        return ask_url
    return lambda: _ask_kumadp(settings, None if named else ask_url)


def _url_checker(url: str, timeout: float) -> Callable[[], str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        host, port = "", 0
    if not is_loopback(host.removesuffix(".")) or parts.scheme != "http" or not url.isprintable() or " " in url:
        # Kuma 2.14 takes loopback hosts only: the answer is for this host's own workload.
        hint = f"write one like {DEFAULT_URL}"
        raise SettingsError([Problem("--url", f"{url!r} is not an http address on loopback", hint)])
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def connect(timeout: float) -> socket.socket:
        return socket.create_connection((host, port), timeout)

    return lambda: _ask(connect, target, url, timeout, parts.netloc.rpartition("@")[2])


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


def _ask_kumadp(settings: Settings, otherwise: Callable[[], str] | None) -> str:
    """Why the kumadp that is meant, or one of all that run here, is not ready; empty when all are.

    ``otherwise`` is called where no kumadp is to be seen, so that a data plane which is still to come is never mistaken
    for one that is there already; without it there is always one to wait for.
    """
    search = find(os.environ)
    if not search.running and otherwise is not None:
        return otherwise()
    wanted = [_status(one, settings.request_timeout) for one in search.nearest(settings.name)]
    if wanted:
        return "; ".join(f"{status['name']}: {_why(status)}" for status in wanted if not status.get("ready"))
    others = ", ".join(sorted(str(_status(one, settings.request_timeout)["name"]) for one in search.running))
    return (
        f"{settings.name}: no kumadp of that name runs here, as far as this user may see"
        + (f"; running: {others}" if others else "")
        + search.notes()
    )


def _status(one: Running, timeout: float) -> dict[str, Any]:
    try:
        status = ask_status(one.path, max(timeout, _LEAST_FOR_STATUS), one.uid)
    except OSError as error:
        return {"name": one.name, "reasons": [f"its control socket does not answer: {reason(error)}"]}
    return {**status, "name": on_one_line(status["name"])}


def _why(status: Mapping[str, Any]) -> str:
    return on_one_line(", ".join(status.get("reasons") or [str(status.get("phase"))]))


def _ask(
    connect: Callable[[float], socket.socket], target: str, where: str, timeout: float, host: str = "localhost"
) -> str:
    deadline = time.monotonic() + timeout
    try:
        with connect(timeout) as sock:
            status, _ = exchange(sock, "GET", target, deadline, host=host, head_only=True)
    except OSError as error:
        return f"{where}: {reason(error)}"
    return "" if status == 200 else f"{where} answers {status}"
