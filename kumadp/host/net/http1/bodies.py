"""Decoder of bodies of HTTP/1.1 messages: of a stated length, chunked, or until the connection ends. Pure."""

from __future__ import annotations

import re

from kumadp.host.net.http1.heads import MalformedMessage

# A line with the size of a chunk, or a trailer field.
_MAX_LINE = 4096
_MAX_TRAILERS = 64
# Each chunk is work, however small it is.
_MAX_CHUNKS = 16_384
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_SIZE_LINE, _DATA, _DATA_END, _TRAILER = range(4)


class BodyDecoder:
    """Takes a body in pieces, and keeps its first ``keep`` bytes in ``content``; ``received`` counts all.

    ``length`` in bytes; None: chunked, or until the connection ends.
    """

    __slots__ = (
        "_chunks",
        "_keep",
        "_left",
        "_line",
        "_state",
        "_trailers",
        "chunked",
        "complete",
        "content",
        "received",
    )

    def __init__(self, length: int | None, *, chunked: bool, keep: int) -> None:
        self.chunked = chunked
        self.content = bytearray()
        self.received = 0
        self.complete = length == 0
        self._keep = keep
        self._left = length
        self._state = _SIZE_LINE
        self._line = bytearray()
        self._chunks = 0
        self._trailers = 0

    @property
    def until_end(self) -> bool:
        """Whether the end of the connection is the end of the body."""
        return self._left is None and not self.chunked

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; returns those behind the body's end. Raises MalformedMessage."""
        if self.chunked:
            return self._feed_chunks(data)
        if self._left is None:
            self._take(data)
            return b""
        part = data[: self._left]
        self._take(part)
        self._left -= len(part)
        self.complete = not self._left
        return data[len(part) :]

    def _take(self, part: bytes) -> None:
        room = self._keep - len(self.content)
        if room > 0:
            self.content += part[:room]
        self.received += len(part)

    def _feed_chunks(self, data: bytes) -> bytes:
        start = 0
        while start < len(data):
            if self._state == _DATA:
                assert self._left is not None  # noqa: S101
                part = data[start : start + self._left]
                self._take(part)
                start += len(part)
                self._left -= len(part)
                if not self._left:
                    self._state = _DATA_END
                continue
            end = data.find(b"\n", start)
            self._line += data[start:] if end < 0 else data[start : end + 1]
            if len(self._line) > _MAX_LINE:
                raise MalformedMessage(f"a line of more than {_MAX_LINE} bytes in a chunked body")
            if end < 0:
                break
            start = end + 1
            line = bytes(self._line)
            self._line.clear()
            if not line.endswith(b"\r\n"):
                raise MalformedMessage("a line of a chunked body that does not end in CRLF")
            self._on_line(line[:-2])
            if self.complete:
                return data[start:]
        return b""

    def _on_line(self, line: bytes) -> None:
        if self._state == _DATA_END:
            if line:
                raise MalformedMessage("a chunk that is longer than its size")
            self._state = _SIZE_LINE
        elif self._state == _TRAILER:
            self.complete = not line
            self._trailers += 1
            if self._trailers > _MAX_TRAILERS:
                raise MalformedMessage(f"more than {_MAX_TRAILERS} trailer fields")
        else:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise MalformedMessage("a chunk without a size")
            self._chunks += 1
            if self._chunks > _MAX_CHUNKS:
                raise MalformedMessage(f"more than {_MAX_CHUNKS} chunks")
            self._left = int(match[1], 16)
            self._state = _DATA if self._left else _TRAILER
