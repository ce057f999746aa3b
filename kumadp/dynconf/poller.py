"""Poller of one path: requests its body, decodes it, hands it to its handler, and reports its removal."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from kumadp.dynconf.socket_client import InvalidResponse, SocketClient, SocketResponse
from kumadp.host.log.secrets import redact
from kumadp.resources.dynconf_bodies import MESH_METRIC, Body, InvalidBody, decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.resources.dynconf_bodies import BodyHandler

log = logging.getLogger("kumadp.dynconf")

# A body counts as removed after so many polls in a row without one: a listener may be away for a moment.
POLLS_UNTIL_REMOVED = 3
# A request that failed once is repeated before a warning is set.
_FAILURES_UNTIL_WARNING = 2
# Larger bodies are not part of the status (bytes).
_MAX_SHOWN_BODY = 64 << 10


class BodyPoller:
    """Polls one path of `BODIES`. ``deadline`` in seconds bounds each response, and each call of ``handler``.

    ``set_warning`` is called with a text, empty when the path is well again. ``on_absent`` is called each time that
    nothing is served at the path and the handler has nothing to remove.
    """

    def __init__(
        self,
        path: str,
        socket: Path,
        handler: BodyHandler | None,
        deadline: float,
        *,
        set_warning: Callable[[str], None],
        on_absent: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._client = SocketClient(socket)
        self._handler = handler
        self._deadline = deadline
        self._set_warning = set_warning
        self._on_absent = on_absent
        self._warning = ""
        self._request_timeout: asyncio.Timeout | None = None
        self.without_etags = False
        """Whether the responses have no etags, as with Kuma 2.8 to 2.10: each is the whole body."""
        self._etag = ""
        """The etag of the body that is not to be sent again."""
        self._applied_version = self._invalid_version = ""
        """Etags, or digests of bodies without one: of the body that the handler has; of one that cannot be decoded."""
        self._handler_has_body = False
        """Whether the handler has anything to remove, be it half of a body that failed."""
        self._body: Body | None = None
        self._size = 0
        self._missing = self._failures = self._interruptions = 0
        self._request_error = self._apply_error = ""
        self._requests = self._failed = self._changes = 0
        self._changed_at: float | None = None
        self._failed_at: float | None = None
        self._apply_seconds = self._request_seconds = 0.0

    async def poll(self) -> None:
        """Send one request and act on its response; raises nothing but bugs."""
        interruptions = self._interruptions
        self._requests += 1
        response, failure, since = None, "", time.monotonic()
        try:
            async with asyncio.timeout(self._deadline) as self._request_timeout:
                response = await self._client.get(self._path, self._etag)
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except TimeoutError:
            failure = f"no response within {self._deadline:g} s"
        except (InvalidResponse, OSError) as error:
            failure = f"no usable response: {error}"
        finally:
            self._request_timeout = None
            self._request_seconds += time.monotonic() - since
        if response is not None:
            await self._on_response(response)
        elif self._interruptions != interruptions:
            # There is no Envoy: that is known already, and no sign of what the next one serves.
            pass
        elif failure:
            self._on_request_failure(failure)
        else:
            self.without_etags = False
            await self._on_missing()
        self._update_warning()

    def interrupt(self) -> None:
        """Cancel the request under way, as there is no Envoy; reset the counts of failures and of missing bodies."""
        self._interruptions += 1
        self._missing = self._failures = 0
        if self._request_timeout is None:
            self._client.close()
        else:
            # Raises if the timeout expires in this very moment.
            with contextlib.suppress(RuntimeError):
                self._request_timeout.reschedule(0)

    @property
    def settled(self) -> bool:
        """Whether nothing is under way, so that only a change needs another poll."""
        retrying = bool(self._apply_error) and not self._invalid_version
        return not (self._failures or retrying or (self._missing and self._handler_has_body))

    def status(self) -> dict[str, object]:
        """Return JSON types; times in seconds since 1970.

        ``took``: seconds that the handler needed for the last change; ``seconds``: those of all responses so far.
        """
        shown = self._body is not None and self._size <= _MAX_SHOWN_BODY
        return {
            "etag": self._etag or None,
            "changed": self._changed_at,
            "changes": self._changes,
            "took": round(self._apply_seconds, 6),
            "asked": self._requests,
            "seconds": round(self._request_seconds, 6),
            "failed": self._failed,
            "error": self._apply_error or self._request_error or None,
            "failed_at": self._failed_at,
            "bytes": self._size,
            "body": msgspec.to_builtins(self._body) if shown else None,
        }

    async def _on_response(self, response: SocketResponse) -> None:
        if response.status not in {200, 304, 404}:
            self._missing, self._etag = 0, ""
            self._on_request_failure(f"responded with status {response.status}")
            return
        if response.status == 200:
            self.without_etags = not response.etag
            if not self.without_etags or self._path == MESH_METRIC:
                self._on_present()
                await self._accept(response)
                return
            # Kuma 2.8 to 2.10 send the body of MESH_METRIC for every path.
            await self._on_missing()
        elif response.status == 304:
            self._on_present()
        else:
            self.without_etags = False
            await self._on_missing()

    def _on_present(self) -> None:
        self._missing = self._failures = 0
        self._request_error = ""

    async def _accept(self, response: SocketResponse) -> None:
        version = response.etag or hashlib.sha256(response.body).hexdigest()
        self._etag = response.etag
        if version == self._invalid_version:
            return
        if version == self._applied_version:
            self._invalid_version = self._apply_error = ""
            return
        try:
            body = decode(self._path, response.body)
        except InvalidBody as error:
            # No retry: this version would be invalid again.
            self._invalid_version = version
            self._on_apply_failure(f"rejected, the previous one stays in force: {error}")
            return
        if await self._apply(body):
            log.info("%s: %d bytes, %s", self._path, len(response.body), "new" if self._body is None else "changed")
            self._body, self._size, self._applied_version = body, len(response.body), version

    async def _on_missing(self) -> None:
        self._failures, self._request_error, self._etag = 0, "", ""
        self._missing = min(self._missing + 1, POLLS_UNTIL_REMOVED)
        if not self._handler_has_body:
            self._on_absent()
        if self._missing < POLLS_UNTIL_REMOVED:
            return
        self._invalid_version = ""
        if not self._handler_has_body:
            self._apply_error = ""
        elif await self._apply(None):
            log.info("%s: removed", self._path)
            self._body, self._size, self._handler_has_body = None, 0, False

    async def _apply(self, body: Body | None) -> bool:
        """Call the handler; return whether it succeeded."""
        self._handler_has_body, self._applied_version, self._invalid_version = True, "", ""
        since = time.monotonic()
        if self._handler is not None:
            try:
                async with asyncio.timeout(self._deadline) as timeout:
                    await self._handler(body)
            except Exception as error:
                late = timeout.expired()
                reason = f"not done within {self._deadline:g} s" if late else f"{type(error).__name__}: {error}"
                self._etag = ""
                self._on_apply_failure(f"could not be applied, retrying: {redact(reason)}")
                return False
        self._apply_seconds, self._changed_at = time.monotonic() - since, time.time()
        self._changes += 1
        self._apply_error = ""
        return True

    def _on_request_failure(self, reason: str) -> None:
        self._failures += 1
        self._failed += 1
        self._failed_at = time.time()
        self._request_error = reason

    def _on_apply_failure(self, reason: str) -> None:
        self._failed += 1
        self._failed_at = time.time()
        self._apply_error = reason

    def _update_warning(self) -> None:
        request_warning = self._request_error if self._failures >= _FAILURES_UNTIL_WARNING else ""
        warning = self._apply_error or request_warning
        if warning != self._warning:
            self._warning = warning
            self._set_warning(warning)
