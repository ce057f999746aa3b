"""What a fault did: traffic lost, what was logged and shown, and the state afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kumadp.daemon.control_client import query_status
from kumadp.host.net.socket_paths import control_socket_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemon import Daemon
    from tests.support.fault_load import KindReport

_LOGGED = {"warning", "error", "critical"}
# Seconds between two looks at status and log.
_EVERY = 0.1
_LONGEST_TEXT = 200


@dataclass
class FaultRecord:
    """The record of one fault.

    ``log`` are lines at WARNING and above, ``states`` phases with the reasons for not being ready, ``warnings`` those
    of the status, each once and in order. ``exit_code`` is None while kumadp runs, ``envoys`` are the pids before and
    afterwards, ``descriptors`` the numbers of kumadp's before and afterwards (0: it has ended).
    """

    name: str
    mtls: bool
    traffic: dict[str, KindReport] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    exit_code: int | None = None
    serving: bool = False
    envoys: tuple[list[int], list[int]] = ([], [])
    descriptors: tuple[int, int] = (0, 0)
    expected: str = ""
    """What `Row.reported` found, for the table."""

    def lost(self, *kinds: str) -> int:
        """Return how much of these kinds of traffic was lost, of all kinds if none is named."""
        return sum(report.lost for kind, report in self.traffic.items() if not kinds or kind in kinds)

    @property
    def outage(self) -> float:
        """The longest time without an answer of inbound or outbound, in seconds."""
        return max((self.traffic[kind].outage for kind in ("inbound", "outbound") if kind in self.traffic), default=0.0)

    def reported(self, pattern: str) -> str:
        """Return the first log line, state or warning that matches this regex; empty if none does."""
        found = (text for text in (*self.log, *self.states, *self.warnings) if re.search(pattern, text))
        return next(found, "")

    @property
    def afterwards(self) -> str:
        """The state afterwards in a few words."""
        before, after = self.envoys
        if self.exit_code is not None:
            left = f", {len(after)} Envoy left" if after else ""
            return f"ended with {self.exit_code}{left}"
        if not self.serving:
            return "not serving"
        if len(after) != 1:
            return f"serving, {len(after)} Envoys"
        return "serving, same Envoy" if before == after else "serving, another Envoy"


class Watcher:
    """Looks at log and status of the kumadp that ``current`` returns, until it is stopped."""

    def __init__(self, record: FaultRecord, name: str, current: Callable[[], Daemon | None]) -> None:
        self._record, self._name, self._current = record, name, current
        self._daemon = current()
        self._offset = self._daemon.log.stat().st_size if self._daemon is not None else 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look for the last time."""
        self._stopping.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        daemon = self._current()
        if daemon is not self._daemon:
            # Each run has a new log under the same name.
            self._daemon, self._offset = daemon, 0
        if daemon is not None:
            self._read_log(daemon)
            self._read_status(daemon)

    def _read_log(self, daemon: Daemon) -> None:
        with daemon.log.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        for line in complete.decode(errors="replace").splitlines():
            text = _line_text(line)
            if text:
                self._record.log.append(text)

    def _read_status(self, daemon: Daemon) -> None:
        with contextlib.suppress(OSError, KeyError):
            status = query_status(control_socket_path(self._name, daemon.environment), timeout=1.0)
            reasons = "; ".join(status["reasons"])
            _add(self._record.states, f"{status['phase']}: {reasons}" if reasons else status["phase"])
            for warning in status["concerns"]:
                _add(self._record.warnings, warning)


def _line_text(line: str) -> str:
    """The text of a line of the log; empty if it is below WARNING. What is no JSON was printed past the log."""
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError:
        return line[:_LONGEST_TEXT]
    if fields["level"] not in _LOGGED:
        return ""
    child = f"{fields['child']}: " if "child" in fields else ""
    return f"{child}{fields['message']}"[:_LONGEST_TEXT]


def _add(texts: list[str], text: str) -> None:
    if text not in texts:
        texts.append(text)
