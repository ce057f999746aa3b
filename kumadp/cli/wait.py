"""``kumadp wait``: until the data plane on this host is ready, saying what it waits for."""

from __future__ import annotations

import http.client
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kumadp.addresses import is_loopback
from kumadp.cli.logs import open_logs
from kumadp.cli.options import command_with_options, typed_names
from kumadp.errors import Problem, SettingsError, WaitTimeout
from kumadp.lifecycle.control import UnixConnection, ask_status, find_control_sockets, socket_name
from kumadp.settings.resolve import resolve
from kumadp.settings.values import write_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.settings.model import Settings

DEFAULT_URL = "http://localhost:9901/ready"
_LEAST_FOR_STATUS = 0.5
log = logging.getLogger("kumadp.wait")


@command_with_options("wait")
def wait(**flags: object) -> None:
    """Wait until a data plane on this host is ready, and say what it waits for.

    --url and --unix-socket ask just that. --name asks the kumadp with that Dataplane name, which need not run yet.
    Without them every kumadp that runs here must be ready (KUMA_DATAPLANE_NAME: that one alone); where none is to be
    seen, http://localhost:9901/ready is asked, as kuma-dp does.

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
        path = Path(settings.unix_socket)
        return lambda: _ask(UnixConnection(path, settings.request_timeout), "/ready", str(path))
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
    if not is_loopback(host) or parts.scheme != "http":
        # Kuma 2.14 takes loopback hosts only: the answer is for this host's own workload.
        hint = f"write one like {DEFAULT_URL}"
        raise SettingsError([Problem("--url", f"{url!r} is not an http address on loopback", hint)])
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return lambda: _ask(http.client.HTTPConnection(host, port, timeout=timeout), target, url)


def _ask_kumadp(settings: Settings, otherwise: Callable[[], str] | None) -> str:
    """Why the kumadp that is meant, or one of all that run here, is not ready; empty when all are.

    ``otherwise`` is asked where no kumadp is to be seen, so that a data plane which is still to come is never mistaken
    for one that is there already; without it there is always one to wait for.
    """
    seen = {path: _status(path, settings.request_timeout) for path in find_control_sockets(os.environ)}
    if not seen and otherwise is not None:
        return otherwise()
    wanted = [status for path, status in seen.items() if not settings.name or path.name == socket_name(settings.name)]
    if wanted:
        return "; ".join(f"{status['name']}: {_why(status)}" for status in wanted if not status.get("ready"))
    others = ", ".join(sorted(str(status["name"]) for status in seen.values()))
    return f"{settings.name}: no kumadp of that name runs here, as far as this user may see" + (
        f"; running: {others}" if others else ""
    )


def _status(path: Path, timeout: float) -> dict[str, Any]:
    try:
        return {"name": path.stem, **ask_status(path, max(timeout, _LEAST_FOR_STATUS))}
    except OSError as error:
        return {"name": path.stem, "reasons": [f"its control socket does not answer: {error}"]}


def _why(status: Mapping[str, Any]) -> str:
    return ", ".join(status.get("reasons") or [str(status.get("phase"))])


def _ask(connection: http.client.HTTPConnection, target: str, where: str) -> str:
    try:
        connection.request("GET", target)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{where}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"{where} answers {status}"
