"""Log handler for systemd's journal: the line as text, its origin in fields."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys

from kumadp.host.log.line_formats import line_text, read_line
from kumadp.host.log.secrets import redact

SOCKET = "/run/systemd/journal/socket"
# A datagram has to fit into the socket's buffer, which is 208 KiB by default.
_MAX_VALUE = 48 * 1024
# syslog(3)'s priorities.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


class JournalHandler(logging.Handler):
    """Writes to the journal by its own protocol (systemd, JOURNAL_NATIVE_PROTOCOL).

    If the journal is unreachable, a line goes to standard error, which systemd connects to the journal.
    """

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # The original one, also after `sys.stderr` has been replaced.
        self._stderr = sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fields = fields_of(record)
        try:
            # By path each time: a restarted journald has another socket.
            self._socket.sendto(entry(fields), self._path)
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                # The level as sd-daemon(3) has it.
                self._stderr.write(f"<{fields['PRIORITY']}>{fields['MESSAGE']}\n")
                self._stderr.flush()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """Return the fields of a record; ``KUMADP_CHILD``, ``_COMPONENT`` and ``_EPOCH`` are those of a child's line."""
    line = read_line(record)
    fields = {
        "MESSAGE": redact(line_text(record)),
        "PRIORITY": str(next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)),
        "SYSLOG_IDENTIFIER": "kumadp",
        "KUMADP_LOGGER": record.name,
    }
    if line.child:
        fields["KUMADP_CHILD"] = line.child
        if line.component:
            fields["KUMADP_COMPONENT"] = line.component
        if (epoch := getattr(record, "epoch", None)) is not None:
            fields["KUMADP_EPOCH"] = str(epoch)
    if repeated := getattr(record, "repeated", 0):
        fields["KUMADP_REPEATED"] = str(repeated)
    return fields


def entry(fields: dict[str, str]) -> bytes:
    """Encode fields as a datagram: a value of several lines is preceded by its length."""
    parts = []
    for name, text in fields.items():
        value = text.encode("utf-8", "replace")[:_MAX_VALUE]
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)
