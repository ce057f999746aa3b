"""Our own upgrade: this process becomes a newer kumadp by execve(2), with the same pid, children and sockets.

The state for the new program is in a sealed memfd, not in a file, argument or environment; only its number is in a
variable. Descriptors keep their numbers; they are made inheritable at the last moment, and closed-on-exec again by
the program that continues, so that no child ever has them.

Children with a parent death signal die with the *thread* that started them (PR_SET_PDEATHSIG, prctl(2)). The main
thread starts them, and it is the one that survives execve(2).
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
from kumadp.host.thread_pool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

FORMAT = 1
_NAME = "kumadp-handover"
_STDIN = "kumadp-stdin"
_MAX_STDIN = 64 * 1024 * 1024
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Without those for faults of our own (SIGSEGV etc.) and those that cannot be blocked.
HELD_SIGNALS = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGALRM}
)


class Handover(msgspec.Struct, frozen=True):
    """State that one program hands to the next.

    ``count`` is how often this process was re-executed, this time included; ``version`` that of the previous program;
    ``sections`` hold the state of each part, in its own encoding; ``descriptors`` are all that are handed over;
    ``interim`` is for readiness probes until the next program serves.
    """

    format: int
    pid: int
    count: int
    version: str
    sockets: tuple[inherited.HandedSocket, ...]
    descriptors: tuple[int, ...]
    sections: dict[str, bytes]
    interim: InterimAnswer = msgspec.field(default_factory=InterimAnswer, name="meanwhile")


def collect(
    sections: Mapping[str, bytes], descriptors: Iterable[int], previous: Handover | None = None, *, ready: bytes = b""
) -> Handover:
    """Return the state to hand over now: every registered socket, these sections and descriptors.

    ``previous`` is the handover that this program itself was started with. Negative descriptors are skipped. ``ready``:
    the whole response to ``GET /ready`` until the next program serves.
    """
    sockets = tuple(inherited.sockets())
    numbers = {sock.descriptor for sock in sockets} | {number for number in descriptors if number >= 0}
    count = previous.count + 1 if previous is not None else 1
    interim = InterimAnswer(tuple(sock.descriptor for sock in sockets if inherited.is_probed(sock)), ready)
    return Handover(FORMAT, os.getpid(), count, __version__, sockets, tuple(sorted(numbers)), dict(sections), interim)


def write(handover: Handover) -> int:
    """Return a sealed memfd that holds ``handover``, closed-on-exec."""
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
    """Return the content of a memfd of `write`; raises HandoverFailed for anything else."""
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
    """Return the state that the previous program handed over, once; None without one. Raises HandoverFailed.

    Its descriptors are made closed-on-exec again, and its sockets can be claimed from `inherited_sockets`. To be called
    before any process is started.
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
    """Block `HELD_SIGNALS`, and have the loop handle those received before: none is lost over execve(2).

    The caller must check which were received: after one to stop, `become` must not be called.

    Blocked signals stay pending until `release_signals`, in this program or the next, as long as no other thread takes
    them: see `block_signals_in_threads`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    # The wakeup descriptor is read in the next turn of the loop, the handler runs in the one after, and a task that
    # waits for the handler's effect in the one after that.
    for _ in range(5):
        await asyncio.sleep(0)


def release_signals() -> None:
    """Unblock `HELD_SIGNALS`; to be called once their handlers are installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


async def block_signals_in_threads() -> None:
    """Block `HELD_SIGNALS` in the threads of the running loop, so that they stay pending.

    To be called before it has any. No process may be started in them: it would have these signals blocked. Raises
    OSError if the host allows no thread.
    """
    loop = asyncio.get_running_loop()
    executor = ThreadPool(initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, HELD_SIGNALS))
    loop.set_default_executor(executor)
    # One that is there at the start makes sure that files can be written later, whatever the host allows then.
    await loop.run_in_executor(executor, int)
    # uvloop starts its own threads at the first name lookup. This name needs no name server, and has not the form that
    # uvloop parses without a thread.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        await loop.getaddrinfo("127.1", 0, flags=socket.AI_NUMERICHOST)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def become(
    handover: Handover, environ: Mapping[str, str], flush: Callable[[], object], argv: tuple[str, ...] | None = None
) -> NoReturn:
    """Replace this program now; if that fails, restore everything and raise HandoverFailed.

    ``flush`` is called last, to write the log. ``argv`` is the command to run, by default our own command line with
    this interpreter. From the main thread only, after `hold_signals`.
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
            if _stdin_is_buffered():
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
    """Copy piped standard input to a memfd, so that the program that replaces us can read it again.

    To be called before it is read, if it is one of our files (``-``). Blocks until its end.
    """
    if _stdin_is_buffered():
        return
    memfd = os.memfd_create(_STDIN, os.MFD_CLOEXEC)
    size = 0
    while size < _MAX_STDIN and (data := os.read(0, 64 * 1024)):
        size += os.write(memfd, data)
    os.lseek(memfd, 0, os.SEEK_SET)
    os.dup2(memfd, 0)
    os.close(memfd)


def open_stdin() -> int:
    """Return a descriptor that reads the input of `buffer_stdin` from the start, or an empty one."""
    return os.open("/proc/self/fd/0" if _stdin_is_buffered() else os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _stdin_is_buffered() -> bool:
    try:
        return _STDIN in str(Path("/proc/self/fd/0").readlink())
    except OSError:
        return False


def own_command_line() -> tuple[str, ...]:
    """Return the command line that started this program, with the absolute path of the interpreter."""
    return (sys.executable, *sys.orig_argv[1:])
