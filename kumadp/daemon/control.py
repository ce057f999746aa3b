"""The owner-only control socket: everything the daemon knows of itself, as JSON, and what it can be asked to do.

``POST /reload`` answers when it is done, with a line for people under ``said``. ``POST /reexec`` answers before it is
done, with ``count``, how often this process was re-executed so far: it is done when ``count`` under ``reexec`` in the
status is higher, and has failed when ``failed`` there, empty or not there until then, says why. What is refused is
answered with 409 and ``why``. ``POST /log-level`` takes levels as the query of its URL. ``GET /metrics`` is kumadp's
own metrics, in Prometheus' text format.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kumadp.decoding import Undecodable, decode_json
from kumadp.errors import KumadpError, WorkDirError
from kumadp.host.net.serve import bind_unix, serve
from kumadp.host.net.unix_http import connected, exchange, peer_of
from kumadp.host.work_dir import RELAY_SOCKET

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from aiohttp import web

    Action = Callable[[], Awaitable[Mapping[str, object]]]
    Page = Callable[[], Awaitable[tuple[bytes, str]]]
    Order = Callable[[Mapping[str, str]], Awaitable[Mapping[str, object]]]

log = logging.getLogger("kumadp.daemon")

SUFFIX = ".control"
RUN = Path("/run/kumadp")
# Linux has 108 bytes for the path of a Unix socket, one of them ends it (unix(7)).
LONGEST_SOCKET_PATH = 107
# A status has six levels; what is far deeper ends whoever walks through it.
_DEEPEST = 40


class ControlServer:
    """Serves ``GET /status`` and ``POST /<action>`` to our own user and root.

    An action does what it is for and returns what to answer (JSON types), or raises KumadpError with the reason why
    not. An order is an action that hears the query of its URL. The socket is bound when this is made (WorkDirError).
    """

    name = "control socket"

    def __init__(
        self,
        path: Path,
        status: Callable[[], dict[str, object]],
        actions: Mapping[str, Action] | None = None,
        orders: Mapping[str, Order] | None = None,
    ) -> None:
        self._path = path
        self._status = status
        self._actions = {f"/{name}": _deaf(action) for name, action in (actions or {}).items()}
        self._actions |= {f"/{name}": order for name, order in (orders or {}).items()}
        self._socket = bind_unix(path)
        self.pages: dict[str, Page] = {}
        """What else can be read, by path: body and content type."""

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled; the socket file goes."""
        try:
            await serve(self._answer, self._socket, up, name=self.name)
        finally:
            self._path.unlink(missing_ok=True)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        from aiohttp import web

        peer = request.transport.get_extra_info("socket") if request.transport else None
        if peer is None or peer_of(peer).uid not in {0, os.geteuid()}:
            return web.Response(status=403, text="only for the owner\n")
        if request.method == "GET" and (page := self.pages.get(request.path)) is not None:
            body, kind = await page()
            return web.Response(body=body, headers={"content-type": kind})
        action = self._actions.get(request.path)
        if action is None and request.path != "/status":
            known = " and ".join(("/status", *self.pages, *self._actions))
            return web.json_response({"why": f"only {known} here"}, status=404)
        if (request.method == "POST") is (action is None):
            return web.json_response({"why": f"{request.path} is not for {request.method}"}, status=405)
        if action is None:
            return web.json_response(self._status())
        try:
            return web.json_response(await action(request.query))
        except KumadpError as error:
            return web.json_response({"why": str(error)}, status=409)
        except Exception as error:
            log.exception("%s failed", request.path)
            return web.json_response({"why": f"a bug in kumadp: {type(error).__name__}: {error}"}, status=500)


def _deaf(action: Action) -> Order:
    def order(_query: Mapping[str, str]) -> Awaitable[Mapping[str, object]]:
        return action()

    return order


def folders(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where control sockets go, the first choice first; whether they can be made or trusted is not looked at."""
    if runtime := environ.get("RUNTIME_DIRECTORY"):
        yield Path(runtime.split(":")[0])
    if user := environ.get("XDG_RUNTIME_DIR"):
        yield Path(user) / "kumadp"
    yield RUN
    yield Path("/tmp") / f"kumadp-{os.geteuid()}"  # noqa: S108 - 0700 and checked to be ours


def socket_name(name: str) -> str:
    """The file name for the data plane ``name``, short enough for a Unix socket."""
    return f"{name[:60] or 'kumadp'}{SUFFIX}"


def control_socket_path(name: str, environ: Mapping[str, str], work: Path | None = None) -> Path:
    """Where the control socket of the data plane ``name`` goes: the first folder that is, or can be made, private.

    The work directory is the last one, where nothing else can be written. A folder whose name leaves no room for the
    socket's is passed over. Raises OSError if there is none.
    """
    return _private_path(socket_name(name), (*folders(environ), *((work,) if work is not None else ())))


def relay_socket_path(name: str, work: Path, environ: Mapping[str, str]) -> Path:
    """Where Envoy finds the relay: in the work directory, or beside the control socket where that name is too long.

    Raises WorkDirError where there is no place.
    """
    path = work / RELAY_SOCKET
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    try:
        return _private_path(f"{name[:60] or 'kumadp'}.relay", folders(environ))
    except OSError:
        raise WorkDirError(f"{path} is too long for a socket", "choose a shorter --work-dir") from None


def _private_path(file: str, places: Iterable[Path]) -> Path:
    for folder in places:
        path = folder / file
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if private and os.access(folder, os.W_OK):
                if not path.is_socket():
                    # A folder that can be written may be on a disk without room for another file.
                    tempfile.NamedTemporaryFile(dir=folder, prefix=".").close()
                return path
    raise OSError("no private directory for the control socket")


def control_socket_files(environ: Mapping[str, str]) -> list[Path]:
    """Where control sockets are, those of the dead among them; in folders of ours or root's."""
    found: list[Path] = []
    for folder, pattern in (*((folder, "*" + SUFFIX) for folder in folders(environ)), (RUN, "*/*" + SUFFIX)):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid in {0, os.geteuid()}:
                found += sorted(folder.glob(pattern))
    return found


def ask_status(path: Path, timeout: float = 2.0, uid: int | None = None) -> dict[str, Any]:
    """The status behind a control socket. Blocks for ``timeout`` seconds at most; raises OSError as `ask` does.

    What readers rely on is there, and of its type (`kumadp.daemon.status_schema.Essentials`).
    """
    from kumadp.daemon.status_schema import check_essentials

    code, found = ask(path, "GET", "/status", timeout, uid)
    if code != 200:
        raise OSError(f"answered with {code}")
    check_essentials(found)
    return found


def ask(path: Path, method: str, target: str, timeout: float, uid: int | None = None) -> tuple[int, dict[str, Any]]:
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
