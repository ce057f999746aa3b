"""``kumadp wait``: until the data plane on this host is ready, saying what it waits for."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from kumadp.cli.options import command_with_options
from kumadp.errors import Problem, SettingsError, WaitTimeout
from kumadp.lifecycle.control import UnixConnection, ask_status, find_control_sockets
from kumadp.settings.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.settings.model import Settings

DEFAULT_URL = "http://localhost:9901/ready"


@command_with_options("wait")
def wait(**flags: object) -> None:
    """Wait until a data plane on this host is ready.

    Without --url and --unix-socket it asks the kumadp that runs here, and says what that waits for; where there is
    none, http://localhost:9901/ready as kuma-dp does. Exit code 0 when ready, 75 when not within --timeout.
    """
    settings = resolve("wait", flags, os.environ).settings
    check = _checker(settings)
    end = time.monotonic() + settings.timeout
    told = ""
    while True:
        reason = check()
        if not reason:
            return
        if reason != told:
            click.echo(f"waiting: {reason}", err=True)
            told = reason
        left = end - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"not ready within {settings.timeout:g} s: {told}")
        time.sleep(min(settings.check_frequency, left))


def _checker(settings: Settings) -> Callable[[], str]:
    """What to ask each time: returns why it is not ready, empty when it is."""
    if settings.unix_socket:
        path = Path(settings.unix_socket)
        return lambda: _ask(UnixConnection(path, settings.request_timeout), "/ready", str(path))
    url = settings.url or DEFAULT_URL
    parts = urlsplit(url)
    if parts.scheme != "http" or not _is_loopback(parts.hostname or ""):
        # Kuma 2.14 takes loopback hosts only: the answer is for this host's own workload.
        raise SettingsError(
            [Problem("--url", f"{url} is not an http address on loopback", f"write one like {DEFAULT_URL}")]
        )
    port = parts.port or 80
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def check() -> str:
        said, is_ready = _ask_kumadp(settings)
        if is_ready is not None and not settings.url:
            return "" if is_ready else said
        connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=settings.request_timeout)
        reason = _ask(connection, target, url)
        return f"{reason}; {said}" if reason and said else reason

    return check


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask_kumadp(settings: Settings) -> tuple[str, bool | None]:
    """What the kumadp instances of this host say: reasons, and whether all are ready; None where there is none."""
    reasons, states = [], []
    for path in find_control_sockets(os.environ):
        with contextlib.suppress(OSError):
            status = ask_status(path, max(settings.request_timeout, 0.5))
            states.append(bool(status.get("ready")))
            if not status.get("ready"):
                why = ", ".join(status.get("reasons") or [str(status.get("phase"))])
                reasons.append(f"{status.get('name')}: {why}")
    return "; ".join(reasons), all(states) if states else None


def _ask(connection: http.client.HTTPConnection, target: str, where: str) -> str:
    try:
        connection.request("GET", target)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{where}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"{where} answers {status}"
