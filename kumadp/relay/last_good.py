"""The last good configuration on disk: what a host serves that boots while the control plane is away.

One file, 0600, replaced as a whole: a line with the format's version, the SHA-256 of what follows, MessagePack. It is
bound to mesh, name, control plane and Envoy version. Its modification time is when the control plane last stood by it.
No secret is written: `kumadp.relay.secret_scan` says what may be.
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
# A clock may be a little behind the one that wrote the file, e.g. before NTP has set it.
CLOCK_SKEW = 300.0
DEBOUNCE = 0.5
# Bytes of a response from which on the copies that were written are worth to be given back.
LARGE = 1 << 20
# Of all time no more than a twentieth goes to writing, yet nothing waits for longer than this.
LONGEST_PAUSE = 30.0
CONFIRM_EVERY = 60.0


class Binding(msgspec.Struct, frozen=True):
    """Whose configuration it is: nobody else's is ever served."""

    mesh: str
    name: str
    control_plane: str
    envoy: str


class LastGood(msgspec.Struct, frozen=True):
    """What was kept: the bootstrap without its token, the Corefile template, the relay's memory.

    ``left_out`` says why there is nothing of a type. ``confirmed``: when the control plane last stood by it, in seconds
    since 1970.
    """

    binding: Binding
    bootstrap: dict[str, Any]
    corefile_template: str | None
    memory: RelaySnapshot
    left_out: dict[str, str]
    confirmed: float = 0.0


class LastGoodContent(msgspec.Struct, frozen=True):
    """What is to be kept."""

    bootstrap: dict[str, Any]
    corefile_template: str | None
    memory: RelaySnapshot


class LastGoodUnusable(KumadpError):
    """A copy cannot be made, or one that is there cannot be used."""


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
        self._left_out: dict[str, str] = {}
        # The responses that were looked at for the file there is now, and what was found.
        self._judged: dict[str, tuple[bytes, str]] = {}

    async def load(self) -> LastGood | None:
        """What is there and may be used; None, with one warning where there is a file that may not."""
        try:
            found = await asyncio.to_thread(read, self.path, self._binding, self._max_age, self._clock())
        except FileNotFoundError:
            return None
        except (OSError, LastGoodUnusable) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            log.warning("the last good configuration in %s is not used: %s", self.path, reason)
            return None
        self._left_out = found.left_out
        return found

    def bind(self, binding: Binding) -> None:
        """What is written from now on is for this data plane, control plane and Envoy."""
        if binding != self._binding:
            self._binding = binding
            self.schedule_write()

    def schedule_write(self) -> None:
        """Something was accepted: it is written soon, together with what else comes until then."""
        self._dirty = True
        if self._task is None and not self._closing:
            self._task = asyncio.create_task(self._write_soon(), name="last good configuration")

    async def confirm(self) -> None:
        """The control plane still stands by what was written: its age counts from now. To be called now and then."""
        now = self._clock()
        if self._written is None or self._dirty or self._task is not None or now - self._confirmed < CONFIRM_EVERY:
            return
        self._confirmed = now
        try:
            await asyncio.to_thread(os.utime, self.path, (now, now))
        except OSError as error:
            self._failed(error.strerror or str(error))

    async def flush(self) -> None:
        """Write what is not written yet, without its pause."""
        self._hurry.set()
        try:
            if self._task is not None:
                await self._task
        finally:
            self._hurry.clear()

    async def close(self) -> None:
        """Write what is not written yet, and nothing after it."""
        self._closing = True
        await self.flush()

    def status(self) -> dict[str, object]:
        """JSON types: path, when it was written (None: not by this run), what is left out and why, the last error."""
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
        finally:
            self._task = None

    def _write(self, content: LastGoodContent) -> None:
        began = time.monotonic()
        try:
            kept = self._publish(content)
            write(self.path, kept, self._clock())
        except (OSError, LastGoodUnusable) as error:
            self._failed((error.strerror if isinstance(error, OSError) else None) or str(error))
        else:
            for type_url in kept.left_out.keys() - self._left_out.keys() - {SECRET}:
                log.info("%s is left out of the last good configuration: %s", type_url, kept.left_out[type_url])
            if self._error:
                log.info("the last good configuration can be written again")
            self._left_out, self._error = kept.left_out, ""
            self._written = self._confirmed = self._clock()
        self._pause = min(max(DEBOUNCE, 20 * (time.monotonic() - began)), LONGEST_PAUSE)
        if any(len(one.accepted or b"") > LARGE for one in content.memory.types):
            trim_memory()

    def _failed(self, reason: str) -> None:
        # What is there now is not what is served: nobody stands by it.
        self._written = None
        if not self._error:
            log.warning("the last good configuration cannot be kept in %s: %s", self.path, reason)
        self._error = reason

    def _publish(self, content: LastGoodContent) -> LastGood:
        """``content`` without secrets."""
        bootstrap = without_token(content.bootstrap)
        if where := secret_in(bootstrap):
            raise LastGoodUnusable(f"the bootstrap holds a secret at {where}")
        if holds_secret(msgspec.json.encode([bootstrap, content.corefile_template])):
            raise LastGoodUnusable("the bootstrap holds a secret that was read elsewhere")
        judged: dict[str, tuple[bytes, str]] = {}
        left_out: dict[str, str] = {}
        types = []
        for known in content.memory.types:
            accepted = known.accepted
            if accepted is not None:
                before = self._judged.get(known.type_url)
                reason = before[1] if before is not None and before[0] is accepted else judge(known)
                judged[known.type_url] = (accepted, reason)
                if reason:
                    left_out[known.type_url] = reason
                    accepted = None
            types.append(msgspec.structs.replace(known, accepted=accepted, latest=None))
        self._judged = judged
        memory = RelaySnapshot(tuple(types))
        return LastGood(self._binding, bootstrap, content.corefile_template, memory, left_out)


def judge(known: TypeSnapshot) -> str:
    """Why the accepted response of a type may not be written; empty when it may."""
    if known.type_url == SECRET:
        return "secrets are never written"
    raw = known.accepted or b""
    if holds_secret(raw):
        return "it holds a secret that was read elsewhere"
    try:
        resources = Response.parse(raw).resources
    except BadMessage:
        return "it cannot be read"
    # One by one: a search holds Python's lock, and the event loop wants to run in between.
    return next(filter(None, map(why_secret, resources)), "")


def write(path: Path, kept: LastGood, now: float) -> None:
    """Replace the file. May block; raises OSError."""
    data = msgspec.msgpack.encode(kept)
    write_private(path, b"".join((MAGIC, hashlib.sha256(data).digest(), data)))
    os.utime(path, (now, now))


def read(path: Path, binding: Binding, max_age: float, now: float) -> LastGood:
    """The file, if it is whole, ours and young enough. May block; raises OSError, and NotKept with the reason."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise LastGoodUnusable("it is not a file")
        if facts.st_uid != os.geteuid():
            raise LastGoodUnusable("it belongs to another user")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            raise LastGoodUnusable("others could read or change it", "its mode must be 0600")
        if facts.st_size > LARGEST:
            raise LastGoodUnusable("it is too large")
        data = file.read(LARGEST + 1)
    age = now - facts.st_mtime
    if age > max_age:
        raise LastGoodUnusable(f"it is {age / 3600:.1f} hours old", "--last-good-max-age")
    if age < -CLOCK_SKEW:
        raise LastGoodUnusable("it is of the future", "is this host's clock right?")
    head, digest_size = len(MAGIC), hashlib.sha256().digest_size
    if data[:head] != MAGIC:
        raise LastGoodUnusable("it was not written by this version of kumadp")
    body = memoryview(data)[head + digest_size :]
    if hashlib.sha256(body).digest() != data[head : head + digest_size]:
        raise LastGoodUnusable("it is damaged")
    try:
        kept = decode_msgpack(body, LastGood)
    except Undecodable:
        raise LastGoodUnusable("it is of another form") from None
    for field in Binding.__struct_fields__:
        theirs, ours = getattr(kept.binding, field), getattr(binding, field)
        if theirs != ours:
            raise LastGoodUnusable(f"it is for {field.replace('_', ' ')} {theirs!r}, not {ours!r}")
    return msgspec.structs.replace(kept, confirmed=facts.st_mtime)
