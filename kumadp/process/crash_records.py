"""Crash records: a file for each unexpected death of a child, with its exit status and its last output.

A file is JSON, 0600, in a private folder; its name has the time, the child and its pid; the last ten are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.host.log.secrets import redact
from kumadp.host.private_file import make_own_folder, write_json
from kumadp.process.log_pump import KEPT_LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.process.child import Child
    from kumadp.process.exit_status import ExitStatus

log = logging.getLogger("kumadp.process")

FOLDER = "crashes"
MAX_RECORDS = 10
# Maximum of a termination message in Kubernetes, in bytes.
MESSAGE_SIZE = 4096
_FORMAT = 1
_MAX_KERNEL_RECORDS = 20_000
_WRITTEN_WITHIN = 3.0
# A death this shortly before our exit is its cause (seconds).
_RECENT = 10.0


class OutOfMemory(msgspec.Struct, frozen=True):
    """The kernel's counter of kills in our cgroup, before and after."""

    file: str
    before: int
    after: int


class CrashRecord(msgspec.Struct, frozen=True):
    """One death. ``time`` in seconds since 1970, ``uptime`` in seconds.

    ``kernel`` are the lines of the kernel's log about that pid, if it can be read.
    """

    format: int
    time: float
    when: str
    child: str
    pid: int
    epoch: int | None
    story: str
    exit_code: int | None
    signal: int | None
    oom: OutOfMemory | None
    uptime: float
    kernel: list[str]
    versions: dict[str, str]
    lines: list[str]


class CrashRecords:
    """Writes a record of each death.

    ``facts`` returns more about a pid: ``epoch`` and ``versions``. ``folder`` returns the folder for records, or None,
    and creates it if its argument is true; it may block. ``on_failure`` is called with the reason if a record is not
    written, and with an empty text once one is.
    """

    def __init__(
        self,
        folder: Callable[[bool], Path | None],
        facts: Callable[[int], Mapping[str, Any]],
        on_failure: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._folder = folder
        self._facts = facts
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self.newest = ""
        self.last: CrashRecord | None = None
        """The last death in this run."""

    def status(self) -> dict[str, object]:
        """Return the newest record, also of an earlier run, and its summary; JSON types."""
        return {"newest": self.newest, "story": self.last.story if self.last is not None else ""}

    def note(self, child: Child, status: ExitStatus) -> None:
        """Record the death of a child that has just ended; on the event loop, without blocking it."""
        now = time.time()
        facts = self._facts(child.pid)
        uptime = asyncio.get_running_loop().time() - child.started_at
        oom = status.oom
        self.last = CrashRecord(
            format=_FORMAT,
            time=round(now, 3),
            when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            child=child.name,
            pid=child.pid,
            epoch=facts.get("epoch"),
            story=redact(f"{child.name} ended with {status.describe()} after {uptime:.1f} s"),
            exit_code=status.code,
            signal=status.signal,
            oom=OutOfMemory(*oom) if oom is not None else None,
            uptime=round(uptime, 3),
            kernel=[],
            versions=dict(facts.get("versions") or {}),
            lines=[redact(line) for line in child.tail(KEPT_LINES)],
        )
        task = asyncio.get_running_loop().create_task(self._write(self.last))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def find_newest(self) -> None:
        """Find the newest record of an earlier run."""
        self.newest = self.newest or await asyncio.to_thread(self._newest)

    async def close(self, code: int, why: str, message: str) -> None:
        """Wait until all records are written, or a few seconds. Write a failure to the file ``message`` too.

        That includes a child that has just died.
        """
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_WRITTEN_WITHIN)
        if code and message:
            last = self.last if self.last is not None and time.time() - self.last.time < _RECENT else None
            text = termination_message(f"exit code {code}: {why}", last)
            await asyncio.to_thread(write_termination_message, Path(message), text)

    async def _write(self, crash: CrashRecord) -> None:
        try:
            path = await asyncio.to_thread(self._keep, crash)
        except Exception as error:
            # The disk is full, or the folder belongs to another user: the death itself is in the log.
            log.warning("no crash record of %s: %s", crash.child, error)
            self._on_failure(f"the last one, of {crash.child}, cannot be written: {error}")
            return
        self._on_failure("")
        if path is None:
            log.info("no state directory: no crash record of %s is kept", crash.child)
            return
        self.newest = str(path)
        log.warning("crash record: %s", path)

    def _keep(self, crash: CrashRecord) -> Path | None:
        parent = self._folder(True)
        if parent is None:
            return None
        folder = parent / FOLDER
        make_own_folder(folder)
        crash = msgspec.structs.replace(crash, kernel=kernel_lines(crash.pid))
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(crash.time)) + f".{int(crash.time % 1 * 1000):03d}Z"
        path = folder / f"{stamp}-{crash.child}-{crash.pid}.json"
        write_json(path, crash)
        for old in sorted(folder.glob("*.json"))[:-MAX_RECORDS]:
            old.unlink(missing_ok=True)
        return path

    def _newest(self) -> str:
        with contextlib.suppress(OSError):
            parent = self._folder(False)
            if parent is not None:
                return max((str(path) for path in (parent / FOLDER).glob("*.json")), default="")
        return ""


def kernel_lines(pid: int, device: str = "/dev/kmsg") -> list[str]:
    """Return the last lines of the kernel's log that name this process, if we may read it. May block."""
    marks = (f"process {pid} (", f"[{pid}]")
    lines: list[str] = []
    try:
        handle = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        for _ in range(_MAX_KERNEL_RECORDS):
            try:
                # One record a read: `priority,sequence,microseconds,flags;text` (Linux, dev-kmsg).
                text = os.read(handle, 8192).decode("utf-8", "replace").partition(";")[2].split("\n")[0]
            except BrokenPipeError:
                # Overwritten while it was read: continue with the next one.
                continue
            if not text:
                break
            if any(mark in text for mark in marks):
                lines.append(text)
    except OSError:
        # BlockingIOError: that was the last.
        pass
    finally:
        os.close(handle)
    return lines[-5:]


def termination_message(why: str, crash: CrashRecord | None) -> str:
    """Return the text that Kubernetes shows for a container: why it ended, and the last lines of a child that died."""
    parts = [why]
    if crash is not None:
        parts += [crash.story, *crash.kernel]
        room = MESSAGE_SIZE - len("\n".join(parts).encode()) - 1
        last_lines: list[str] = []
        for line in reversed(crash.lines):
            room -= len(line.encode()) + 1
            if room < 0:
                break
            last_lines.insert(0, line)
        parts += last_lines
    return "\n".join(parts).encode()[:MESSAGE_SIZE].decode("utf-8", "ignore") + "\n"


def write_termination_message(path: Path, text: str) -> None:
    """Write to the file that the container runtime created; does nothing without one. May block."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "wb") as file:
            file.write(redact(text).encode())
