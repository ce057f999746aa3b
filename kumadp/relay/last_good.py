"""The last good configuration on disk, which a host serves that boots while the control plane is unreachable.

One file, 0600, replaced as a whole: a line with the format's version, the SHA-256 of the rest, MessagePack. It is bound
to mesh, name, control plane and Envoy version. Its modification time is when the control plane last confirmed it. No
secret is written: `kumadp.relay.secret_scan` decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.bootstrap.secrets import secret_in, without_token
from kumadp.decoding import Undecodable, decode_msgpack
from kumadp.errors import KumadpError
from kumadp.host.log.secrets import holds_secret
from kumadp.host.memory_trim import trim_memory
from kumadp.host.private_file import write_private
from kumadp.relay.messages import SECRET, BadMessage, Response
from kumadp.relay.secret_scan import why_secret
from kumadp.relay.snapshot import RelaySnapshot, TypeSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("kumadp.relay")

FILE = "last-good.msgpack"
MAGIC = b"kumadp last good configuration, format 1\n"
LARGEST = 1 << 30
# Before NTP has set it, the clock can be behind the time of the file: by a little, or, if the hardware clock has the
# local time of another time zone, by up to 14 hours. A host that boots then, without its control plane, must serve.
CLOCK_SKEW = 300.0
LARGEST_SKEW = 14 * 3600.0 + CLOCK_SKEW
DEBOUNCE = 0.5
# From this size of a response on, in bytes, freed memory is returned to the kernel after a write.
LARGE = 1 << 20
# At most a twentieth of all time is spent on writing, but no write is delayed for longer than this.
LONGEST_PAUSE = 30.0
# How long after a write that failed it is retried (seconds): no further change may come.
RETRY_AFTER = 10.0
CONFIRM_EVERY = 60.0


class Binding(msgspec.Struct, frozen=True):
    """The data plane, control plane and Envoy version of a copy: it is never served to another one."""

    mesh: str
    name: str
    control_plane: str
    envoy: str


class LastGood(msgspec.Struct, frozen=True):
    """A copy on disk: the bootstrap without its token, the Corefile template, the relay's memory.

    ``left_out``: the reason by type for each type without a response. ``confirmed``: when the control plane last
    confirmed it, in seconds since 1970. ``dataplane``: as in `kumadp.bootstrap.prepare.Fetched`.
    """

    binding: Binding
    bootstrap: dict[str, Any]
    corefile_template: str | None
    memory: RelaySnapshot
    left_out: dict[str, str]
    confirmed: float = 0.0
    dataplane: str = ""


class LastGoodContent(msgspec.Struct, frozen=True):
    """The content of a copy to be written."""

    bootstrap: dict[str, Any]
    corefile_template: str | None
    memory: RelaySnapshot
    dataplane: str = ""


class LastGoodUnusable(KumadpError):
    """A copy cannot be written, or the one on disk cannot be used."""


class LastGoodStore:
    """Keeps the last good configuration in ``directory``, which must be private; ``max_age`` in seconds.

    ``content`` is called on the event loop right before each write; None means that there is nothing yet.
    ``on_failure`` is called there with the reason if a write failed, with an empty text after one that succeeded.
    """

    def __init__(
        self,
        directory: Path,
        binding: Binding,
        content: Callable[[], LastGoodContent | None],
        *,
        max_age: float,
        clock: Callable[[], float] = time.time,
        on_failure: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self.path = directory / FILE
        self._on_failure = on_failure
        self._binding = binding
        self._content = content
        self._max_age = max_age
        self._clock = clock
        self._hurry = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._dirty = False
        self._pause = DEBOUNCE
        self._written: float | None = None
        self._confirmed = 0.0
        self._error = ""
        self._retry = False
        self._left_out: dict[str, str] = {}
        # By type, the response of the present file and why it is left out: each response is scanned once.
        self._scanned: dict[str, tuple[bytes, str]] = {}

    async def load(self) -> LastGood | None:
        """Return the copy on disk; None without one, or, with one warning, if it cannot be used."""
        try:
            copy = await asyncio.to_thread(read_copy, self.path, self._binding, self._max_age, self._clock())
        except FileNotFoundError:
            return None
        except (OSError, LastGoodUnusable) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            log.warning("the last good configuration in %s is ignored: %s", self.path, reason)
            return None
        self._left_out = copy.left_out
        if (ahead := copy.confirmed - self._clock()) > CLOCK_SKEW:
            reason = f"its time is {ahead / 3600:.1f} hours in the future (is this host's clock right?)"
            log.warning("the last good configuration in %s is used although %s", self.path, reason)
        return copy

    def bind(self, binding: Binding) -> None:
        """Bind what is written from now on to this data plane, control plane and Envoy version."""
        if binding != self._binding:
            self._binding = binding
            self.schedule_write()

    def schedule_write(self) -> None:
        """Write soon, after a response was accepted; several within the pause are one write."""
        self._dirty = True
        if self._task is None and not self._closing:
            self._task = asyncio.create_task(self._write_soon(), name="last good configuration")

    async def confirm(self) -> None:
        """The control plane still confirms what was written: its age counts from now. To be called regularly."""
        now = self._clock()
        if self._written is None or self._dirty or self._task is not None or now - self._confirmed < CONFIRM_EVERY:
            return
        self._confirmed = now
        try:
            await asyncio.to_thread(os.utime, self.path, (now, now))
        except OSError as error:
            self._failed(error.strerror or str(error))

    async def flush(self) -> None:
        """Write at once what is not written yet."""
        self._hurry.set()
        try:
            if self._task is not None:
                await self._task
        finally:
            self._hurry.clear()

    async def close(self) -> None:
        """Write at once what is not written yet, and nothing after that."""
        self._closing = True
        await self.flush()

    def status(self) -> dict[str, object]:
        """Return in JSON types: path, time of writing (None: not by this run), types left out and why, last error."""
        return {
            "path": str(self.path),
            "written": self._written,
            "left_out": dict(self._left_out),
            "error": self._error,
        }

    async def _write_soon(self) -> None:
        try:
            while self._dirty:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._pause)
                self._dirty = False
                content = self._content()
                if content is not None:
                    await asyncio.to_thread(self._write, content)
                    self._on_failure(f"{self.path} cannot be written: {self._error}" if self._error else "")
                    if self._retry and not self._hurry.is_set() and not self._closing:
                        self._dirty, self._pause = True, max(self._pause, RETRY_AFTER)
        finally:
            self._task = None

    def _write(self, content: LastGoodContent) -> None:
        began = time.monotonic()
        try:
            copy = self._without_secrets(content)
            write_copy(self.path, copy, self._clock())
        except (OSError, LastGoodUnusable) as error:
            self._failed((error.strerror if isinstance(error, OSError) else None) or str(error))
            self._retry = isinstance(error, OSError)
        else:
            self._retry = False
            for type_url in copy.left_out.keys() - self._left_out.keys() - {SECRET}:
                log.info("%s is left out of the last good configuration: %s", type_url, copy.left_out[type_url])
            if self._error:
                log.info("the last good configuration can be written again")
            self._left_out, self._error = copy.left_out, ""
            self._written = self._confirmed = self._clock()
        self._pause = min(max(DEBOUNCE, 20 * (time.monotonic() - began)), LONGEST_PAUSE)
        if any(len(saved.accepted or b"") > LARGE for saved in content.memory.types):
            trim_memory()

    def _failed(self, reason: str) -> None:
        # The file is not what is served: it must not be confirmed.
        self._written = None
        if not self._error:
            log.warning("the last good configuration cannot be kept in %s: %s", self.path, reason)
        self._error = reason

    def _without_secrets(self, content: LastGoodContent) -> LastGood:
        bootstrap = without_token(content.bootstrap)
        if where := secret_in(bootstrap):
            raise LastGoodUnusable(f"the bootstrap holds a secret at {where}")
        if holds_secret(msgspec.json.encode([bootstrap, content.corefile_template])):
            raise LastGoodUnusable("the bootstrap holds a secret that was read elsewhere")
        scanned: dict[str, tuple[bytes, str]] = {}
        left_out: dict[str, str] = {}
        types = []
        for saved in content.memory.types:
            accepted = saved.accepted
            if accepted is not None:
                previous = self._scanned.get(saved.type_url)
                is_same = previous is not None and previous[0] is accepted
                reason = previous[1] if previous is not None and is_same else why_left_out(saved)
                scanned[saved.type_url] = (accepted, reason)
                if reason:
                    left_out[saved.type_url] = reason
                    accepted = None
            types.append(msgspec.structs.replace(without_reasons(saved), accepted=accepted, latest=None, held=()))
        self._scanned = scanned
        memory = RelaySnapshot(tuple(types), content.memory.sockets)
        return LastGood(
            self._binding, bootstrap, content.corefile_template, memory, left_out, dataplane=content.dataplane
        )


def without_reasons(saved: TypeSnapshot) -> TypeSnapshot:
    """Return the type without Envoy's texts, which may quote what it rejected."""
    withheld = tuple(msgspec.structs.replace(rejected, reason="") for rejected in saved.withheld)
    return msgspec.structs.replace(saved, withheld=withheld if saved.type_url != SECRET else ())


def why_left_out(saved: TypeSnapshot) -> str:
    """Return why the accepted response of a type may not be written; empty if it may."""
    if saved.type_url == SECRET:
        return "secrets are never written"
    raw = saved.accepted or b""
    if holds_secret(raw):
        return "it holds a secret that was read elsewhere"
    try:
        resources = Response.parse(raw).resources
    except BadMessage:
        return "it cannot be read"
    # One by one: a search holds the GIL, and the event loop must run in between.
    return next(filter(None, map(why_secret, resources)), "")


def write_copy(path: Path, copy: LastGood, now: float) -> None:
    """Replace the file. May block; raises OSError."""
    data = msgspec.msgpack.encode(copy)
    write_private(path, b"".join((MAGIC, hashlib.sha256(data).digest(), data)))
    os.utime(path, (now, now))


def read_copy(path: Path, binding: Binding, max_age: float, now: float) -> LastGood:
    """Read the file if it is whole, bound to ``binding`` and not older than ``max_age`` seconds. May block.

    Raises OSError, and LastGoodUnusable with the reason.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise LastGoodUnusable("it is not a regular file")
        if facts.st_uid != os.geteuid():
            raise LastGoodUnusable("it belongs to another user")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            raise LastGoodUnusable("others could read or change it", "its mode must be 0600")
        if facts.st_size > LARGEST:
            raise LastGoodUnusable("it is too large")
        # Not `LARGEST`: so much would be allocated.
        data = file.read(facts.st_size)
    age = now - facts.st_mtime
    if age > max_age:
        raise LastGoodUnusable(f"it is {age / 3600:.1f} hours old", "--last-good-max-age")
    if age < -LARGEST_SKEW:
        raise LastGoodUnusable("its time is in the future", "is this host's clock right?")
    head, digest_size = len(MAGIC), hashlib.sha256().digest_size
    if data[:head] != MAGIC:
        raise LastGoodUnusable("it was not written by this version of kumadp")
    body = memoryview(data)[head + digest_size :]
    if hashlib.sha256(body).digest() != data[head : head + digest_size]:
        raise LastGoodUnusable("it is damaged")
    try:
        copy = decode_msgpack(body, LastGood)
    except Undecodable:
        raise LastGoodUnusable("it has another format") from None
    for field in Binding.__struct_fields__:
        theirs, ours = getattr(copy.binding, field), getattr(binding, field)
        if theirs != ours:
            raise LastGoodUnusable(f"it is for {field.replace('_', ' ')} {theirs!r}, not {ours!r}")
    return msgspec.structs.replace(copy, confirmed=facts.st_mtime)
