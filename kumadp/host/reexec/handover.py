"""Our own upgrade: this process becomes a newer kumadp by execve(2), with the same pid, children and sockets.

What the new program needs goes through a sealed memfd: it is in no file, argument or environment, and only its number
is told. Descriptors keep their numbers; they are made inheritable at the last moment, and closed-on-exec again by
whoever goes on, so that no child ever has them.

Children that asked for it die with the *thread* that started them (PR_SET_PDEATHSIG, prctl(2)). The main thread starts
them, and the main thread is the one that execve(2) leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from kumadp import __version__
from kumadp.decoding import decode_msgpack
from kumadp.errors import HandoverFailed
from kumadp.host.core_dumps import disable_core_dumps, restore_core_limit
from kumadp.host.descriptors import raise_limit, restore_limit
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.reexec.interim_responder import VARIABLE, InterimAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

FORMAT = 1
_NAME = "kumadp-handover"
_STDIN = "kumadp-stdin"
_LONGEST_STDIN = 64 * 1024 * 1024
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Not the ones that tell of a fault of our own, and none that cannot be held.
HELD_SIGNALS = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGALRM}
)


class Handover(msgspec.Struct, frozen=True):
    """What one program tells the next.

    ``count`` is how often this process was re-executed, this time included; ``version`` that of the program before;
    ``sections`` hold what each part knows, in its own encoding; ``descriptors`` are all that are handed over;
    ``meanwhile`` is what the next one answers before it can do anything else.
    """

    format: int
    pid: int
    count: int
    version: str
    sockets: tuple[inherited.HandedSocket, ...]
    descriptors: tuple[int, ...]
    sections: dict[str, bytes]
    meanwhile: InterimAnswer = InterimAnswer()


def collect(
    sections: Mapping[str, bytes], descriptors: Iterable[int], before: Handover | None = None, *, ready: bytes = b""
) -> Handover:
    """What there is to hand over now: every socket that `inherited` knows, these sections and descriptors.

    ``before`` is what this program itself was started with. Negative descriptors are passed over. ``ready``: the whole
    answer to ``GET /ready`` until the next program serves.
    """
    sockets = tuple(inherited.sockets())
    kept = {one.descriptor for one in sockets} | {number for number in descriptors if number >= 0}
    count = before.count + 1 if before is not None else 1
    asked = InterimAnswer(tuple(one.descriptor for one in sockets if inherited.is_probed(one)), ready)
    return Handover(FORMAT, os.getpid(), count, __version__, sockets, tuple(sorted(kept)), dict(sections), asked)


def write(handover: Handover) -> int:
    """A sealed memfd that holds it, closed-on-exec."""
    memfd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        data = memoryview(msgspec.msgpack.encode(handover))
        while data:
            data = data[os.write(memfd, data) :]
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def read(memfd: int) -> Handover:
    """What a memfd of `write` holds; raises HandoverFailed for anything else."""
    try:
        if fcntl.fcntl(memfd, fcntl.F_GET_SEALS) != _SEALS:
            raise HandoverFailed("what is handed over is not sealed")
        data = os.pread(memfd, os.fstat(memfd).st_size, 0)
        handover = decode_msgpack(data, Handover)
    except (OSError, ValueError) as error:
        raise HandoverFailed(f"what is handed over cannot be read: {error}") from None
    if handover.format != FORMAT:
        raise HandoverFailed(f"what is handed over has format {handover.format}, this kumadp knows {FORMAT}")
    return handover


def receive(environ: MutableMapping[str, str]) -> Handover | None:
    """What the program before us left, once; None at a start of its own. Raises HandoverFailed.

    Its descriptors are closed-on-exec again, and its sockets wait in `inherited`. To be called before any process is
    started.
    """
    number = environ.pop(VARIABLE, "")
    if not number:
        return None
    memfd = int(number) if number.isdecimal() else -1
    handover = read(memfd)
    if handover.pid != os.getpid():
        raise HandoverFailed(f"what is handed over is for process {handover.pid}")
    os.close(memfd)
    for descriptor in handover.descriptors:
        os.set_inheritable(descriptor, False)
    inherited.receive(handover.sockets)
    return handover


async def hold_signals() -> None:
    """Block `HELD_SIGNALS`, and have the loop see those that came before: none is lost over execve(2).

    What came before is the caller's to look at: one that asked to stop must not be followed by `become`.

    What is blocked stays pending until `release_signals`, in this program or the next, as long as no other thread takes
    it: see `block_signals_in_threads`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    # The wakeup descriptor is read in the next turn of the loop, the handler called in the one after, and whoever waits
    # for what the handler does goes on in the one after that.
    for _ in range(5):
        await asyncio.sleep(0)


def release_signals() -> None:
    """Let `HELD_SIGNALS` come again; to be called once their handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


async def block_signals_in_threads() -> None:
    """Let the threads of the running loop take no `HELD_SIGNALS`, so that blocked ones stay pending.

    To be called before it has any. No process may be started in them: it would have these signals blocked.
    """
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, HELD_SIGNALS))
    loop.set_default_executor(executor)
    # uvloop has threads of its own from the first name on that it looks up. This one needs no name server, and is not
    # in the form that it reads by itself.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        await loop.getaddrinfo("127.1", 0, flags=socket.AI_NUMERICHOST)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def become(
    handover: Handover, environ: Mapping[str, str], flush: Callable[[], object], argv: tuple[str, ...] | None = None
) -> NoReturn:
    """Replace this program, now; raises HandoverFailed, with everything as it was, where that cannot be done.

    ``flush`` is called last of all: writing what is logged. ``argv`` is what to run, by default our own command line
    with this interpreter. From the main thread only, after `hold_signals`.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a program is replaced from the main thread only")
    argv = argv or own_command_line()
    memfd = write(handover)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, memfd)
        try:
            for descriptor in (memfd, *handover.descriptors):
                os.set_inheritable(descriptor, True)
                undo.callback(os.set_inheritable, descriptor, False)
            if _stdin_is_kept():
                os.lseek(0, 0, os.SEEK_SET)
            flush()
            restore_core_limit()
            undo.callback(disable_core_dumps)
            restore_limit()
            undo.callback(raise_limit)
            os.execve(argv[0], argv, {**environ, VARIABLE: str(memfd)})  # noqa: S606 - our own command line
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HandoverFailed(f"{argv[0]} cannot be run: {reason}") from None


def buffer_stdin() -> None:
    """Make what is piped to standard input readable again by the program that takes our place.

    To be called before it is read, where it is a file of ours (``-``). Blocks until its end.
    """
    if _stdin_is_kept():
        return
    memfd = os.memfd_create(_STDIN, os.MFD_CLOEXEC)
    size = 0
    while size < _LONGEST_STDIN and (data := os.read(0, 64 * 1024)):
        size += os.write(memfd, data)
    os.lseek(memfd, 0, os.SEEK_SET)
    os.dup2(memfd, 0)
    os.close(memfd)


def open_stdin() -> int:
    """A descriptor that has from the beginning what `buffer_stdin` kept, or has nothing."""
    return os.open("/proc/self/fd/0" if _stdin_is_kept() else os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _stdin_is_kept() -> bool:
    try:
        return _STDIN in str(Path("/proc/self/fd/0").readlink())
    except OSError:
        return False


def own_command_line() -> tuple[str, ...]:
    """How this program was started, by the absolute path of the interpreter."""
    return (sys.executable, *sys.orig_argv[1:])
