"""Follows the body of one path: asks, decodes, hands over to its owner, and takes it back when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from kumadp.dynconf.http import Answer, BadAnswer, SocketClient
from kumadp.host.log.secrets import redact
from kumadp.resources.dynconf_bodies import MESH_METRIC, Body, WrongBody, decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.resources.dynconf_bodies import BodyHandler

log = logging.getLogger("kumadp.dynconf")

# So many times in a row nothing must be there before it counts: a listener may be away for a moment.
ROUNDS_UNTIL_GONE = 3
# A question that failed once is asked again before that is told.
_FAILURES_UNTIL_TOLD = 2
# What is larger is not shown, in bytes.
_SHOWN = 64 << 10


class Follower:
    """One path of `BODIES`. ``deadline`` in seconds bounds each answer, and each handler.

    ``concern`` is called with what is wrong, and with "" when nothing is any more. ``on_absent`` is called
    each time that nothing is served at the path and the owner has nothing of it.
    """

    def __init__(
        self,
        path: str,
        socket: Path,
        handler: BodyHandler | None,
        deadline: float,
        concern: Callable[[str], None],
        on_absent: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._client = SocketClient(socket)
        self._handler = handler
        self._deadline = deadline
        self._concern = concern
        self._on_absent = on_absent
        self._told = ""
        self._asking: asyncio.Timeout | None = None
        self.plain = False
        """Whether what answers knows no etags, as Kuma 2.8 to 2.10: each answer is the whole body."""
        self._etag = ""
        """Of the body that is not to be sent again."""
        self._in_force = self._wrong = ""
        """Versions: etags, or digests where there is none. The one that the owner has; one that cannot be read."""
        self._handed = False
        """Whether the owner has anything to take back, be it half of what failed."""
        self._body: Body | None = None
        self._size = 0
        self._missing = self._failures = self._interruptions = 0
        self._not_asked = self._not_taken = ""
        self._asked = self._failed = self._changes = 0
        self._changed: float | None = None
        self._failed_at: float | None = None
        self._took = self._seconds = 0.0

    async def ask(self) -> None:
        """Ask once, and do what follows from the answer; raises nothing but what is a bug."""
        interruptions = self._interruptions
        self._asked += 1
        answer, failure, since = None, "", time.monotonic()
        try:
            async with asyncio.timeout(self._deadline) as self._asking:
                answer = await self._client.get(self._path, self._etag)
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except TimeoutError:
            failure = f"no answer within {self._deadline:g} s"
        except (BadAnswer, OSError) as error:
            failure = f"no usable answer: {error}"
        finally:
            self._asking = None
            self._seconds += time.monotonic() - since
        if answer is not None:
            await self._answered(answer)
        elif self._interruptions != interruptions:
            # That there is no Envoy is known, and says nothing of what it serves.
            pass
        elif failure:
            self._not_answered(failure)
        else:
            self.plain = False
            await self._absent()
        self._tell()

    def interrupt(self) -> None:
        """Envoy is gone: give up what is asked; how often in a row something was seen is counted anew."""
        self._interruptions += 1
        self._missing = self._failures = 0
        if self._asking is None:
            self._client.close()
        else:
            # It has run out in this very moment, otherwise.
            with contextlib.suppress(RuntimeError):
                self._asking.reschedule(0)

    @property
    def settled(self) -> bool:
        """Whether the next answer is awaited for nothing but a change."""
        tries = bool(self._not_taken) and not self._wrong
        return not (self._failures or tries or (self._missing and self._handed))

    def status(self) -> dict[str, object]:
        """JSON types; times in seconds since 1970, ``took`` in seconds: of the owner with the last change.

        ``seconds`` is how long was waited for all answers so far.
        """
        shown = self._body is not None and self._size <= _SHOWN
        return {
            "etag": self._etag or None,
            "changed": self._changed,
            "changes": self._changes,
            "took": round(self._took, 6),
            "asked": self._asked,
            "seconds": round(self._seconds, 6),
            "failed": self._failed,
            "error": self._not_taken or self._not_asked or None,
            "failed_at": self._failed_at,
            "bytes": self._size,
            "body": msgspec.to_builtins(self._body) if shown else None,
        }

    async def _answered(self, answer: Answer) -> None:
        if answer.status not in {200, 304, 404}:
            self._missing, self._etag = 0, ""
            self._not_answered(f"answered with {answer.status}")
            return
        if answer.status == 200:
            self.plain = not answer.etag
            if not self.plain or self._path == MESH_METRIC:
                self._present()
                await self._take(answer)
                return
            # Kuma 2.8 to 2.10 answer every path with the body of that one.
            await self._absent()
        elif answer.status == 304:
            self._present()
        else:
            self.plain = False
            await self._absent()

    def _present(self) -> None:
        self._missing = self._failures = 0
        self._not_asked = ""

    async def _take(self, answer: Answer) -> None:
        version = answer.etag or hashlib.sha256(answer.body).hexdigest()
        self._etag = answer.etag
        if version == self._wrong:
            return
        if version == self._in_force:
            self._wrong = self._not_taken = ""
            return
        try:
            body = decode(self._path, answer.body)
        except WrongBody as error:
            # Another one is waited for; this one would be wrong again.
            self._wrong = version
            self._not_done(f"wrong, and what was before stays: {error}")
            return
        if await self._hand(body):
            log.info("%s: %d bytes, %s", self._path, len(answer.body), "new" if self._body is None else "changed")
            self._body, self._size, self._in_force = body, len(answer.body), version

    async def _absent(self) -> None:
        self._failures, self._not_asked, self._etag = 0, "", ""
        self._missing = min(self._missing + 1, ROUNDS_UNTIL_GONE)
        if not self._handed:
            self._on_absent()
        if self._missing < ROUNDS_UNTIL_GONE:
            return
        self._wrong = ""
        if not self._handed:
            self._not_taken = ""
        elif await self._hand(None):
            log.info("%s: removed", self._path)
            self._body, self._size, self._handed = None, 0, False

    async def _hand(self, body: Body | None) -> bool:
        """Give it to the owner; whether he has taken it."""
        self._handed, self._in_force, self._wrong = True, "", ""
        since = time.monotonic()
        if self._handler is not None:
            try:
                async with asyncio.timeout(self._deadline) as bound:
                    await self._handler(body)
            except Exception as error:
                late = bound.expired()
                reason = f"not done within {self._deadline:g} s" if late else f"{type(error).__name__}: {error}"
                self._etag = ""
                self._not_done(f"could not be applied, and is tried again: {redact(reason)}")
                return False
        self._took, self._changed = time.monotonic() - since, time.time()
        self._changes += 1
        self._not_taken = ""
        return True

    def _not_answered(self, why: str) -> None:
        self._failures += 1
        self._failed += 1
        self._failed_at = time.time()
        self._not_asked = why

    def _not_done(self, why: str) -> None:
        self._failed += 1
        self._failed_at = time.time()
        self._not_taken = why

    def _tell(self) -> None:
        concern = self._not_taken or (self._not_asked if self._failures >= _FAILURES_UNTIL_TOLD else "")
        if concern != self._told:
            self._told = concern
            self._concern(concern)
