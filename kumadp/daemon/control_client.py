"""Requests to the control socket of a kumadp that runs on this host."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from kumadp.decoding import Undecodable, decode_json
from kumadp.host.net.unix_http import connected, exchange

if TYPE_CHECKING:
    from pathlib import Path

# A status has six levels; what is far deeper ends whoever walks through it.
_DEEPEST = 40


def query_status(path: Path, timeout: float = 5.0, uid: int | None = None) -> dict[str, Any]:
    """The status behind a control socket. Blocks for ``timeout`` seconds at most; raises OSError as `ask` does.

    What readers rely on is there, and of its type (`kumadp.daemon.status_schema.Essentials`).
    """
    from kumadp.daemon.status_schema import check_essentials

    code, found = send_request(path, "GET", "/status", timeout, uid)
    if code != 200:
        raise OSError(f"answered with {code}")
    check_essentials(found)
    return found


def send_request(
    path: Path, method: str, target: str, timeout: float, uid: int | None = None
) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON object behind a control socket of the user ``uid``, None: ours.

    Blocks for ``timeout`` seconds at most, whatever answers. Raises OSError where the socket is another user's (nothing
    is sent then), and where the answer does not come in time, is too large, or is no JSON object.
    """
    deadline = time.monotonic() + timeout
    with connected(path, os.geteuid() if uid is None else uid, timeout) as (sock, _):
        code, body = exchange(sock, method, target, deadline)
    return code, _object(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = decode_json(body)
    except Undecodable as error:
        raise OSError(f"the answer is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise OSError("the answer is not a JSON object")
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        level = [
            below
            for one in level
            for below in (one.values() if isinstance(one, dict) else one)
            if isinstance(below, dict | list)
        ]
        if not level:
            return found
    raise OSError("the answer is nested too deeply")
