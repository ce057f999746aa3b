"""What the daemon knows of itself: phase, reasons why it is not ready, children, ports.

One writer (the run loop and the components' callbacks, all on the event loop), many readers: the readiness port sees
the state alone, the owner-only control socket sees everything.
"""

from __future__ import annotations

import collections
import logging
import os
import time
from typing import TYPE_CHECKING, Literal

from kumadp import __version__
from kumadp.core.phases import Phase, check_move
from kumadp.host.descriptors import headroom
from kumadp.host.net.connection_limit import connection_counts
from kumadp.process.restart_policy import ChildState

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.daemon.adoption import Before
    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.daemon")

ReadyState = Literal["READY", "NOT_READY", "TERMINATING"]


class Status:
    """The daemon's state, as told to readiness, log, control socket and to whoever listens.

    ``moved`` hears of phases, ``changed`` of why it is not ready and what is wrong.
    """

    def __init__(self, name: str, mode: str, mesh: str = "") -> None:
        self.name = name
        self.mesh = mesh
        self.mode = mode
        self.phase = Phase.STARTING
        self.phase_why = "just started"
        self.since = time.time()
        self.started = time.time()
        self.reasons: dict[str, str] = {}
        self.children: dict[str, ChildReport] = {}
        self.fatal: dict[str, str] = {}
        self.ports: dict[str, str] = {}
        self.facts: dict[str, object] = {}
        self.asked: dict[str, Callable[[], object]] = {}
        self.counters: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        """What is counted by those who have no status of their own, by its kind."""
        self.concerns: dict[str, str] = {}
        self.moved: list[Callable[[Phase, str], None]] = []
        self.changed: list[Callable[[], None]] = []
        self._spent = dict.fromkeys(Phase, 0.0)
        self._moved_at = time.monotonic()
        self._was_ready = False

    def spent(self) -> dict[Phase, float]:
        """Seconds in each phase so far."""
        return {**self._spent, self.phase: self._spent[self.phase] + time.monotonic() - self._moved_at}

    def move(self, phase: Phase, why: str) -> None:
        """Go to ``phase`` and say why; raises IllegalMove where the table has no such move."""
        if phase is self.phase:
            return
        check_move(self.phase, phase)
        self._spent[self.phase] = self.spent()[self.phase]
        log.info("%s -> %s: %s", self.phase.value, phase.value, why)
        self.phase, self.phase_why, self.since = phase, why, time.time()
        self._moved_at = time.monotonic()
        self._was_ready = False
        for tell in self.moved:
            tell(phase, why)

    def resume(self, before: Before) -> None:
        """Go on from a kumadp that was replaced: what was ready is ready while we look at what it left."""
        if before.started is not None:
            self.started = before.started
        self._was_ready = before.ready and before.envoy is not None
        if before.reexecuted:
            self.facts["reexec"] = {"count": before.count}

    def set_not_ready(self, part: str, reason: str) -> None:
        """Note why ``part`` holds readiness back; an empty reason takes the note away. Logged when it changes."""
        if self.reasons.get(part, "") == reason:
            return
        if reason:
            log.info("waiting: %s: %s", part, reason)
            self.reasons[part] = reason
        else:
            del self.reasons[part]
        self._tell_changed()

    def set_warning(self, part: str, concern: str) -> None:
        """Note what is wrong with ``part`` although traffic flows; an empty concern takes the note away. Logged."""
        if self.concerns.get(part, "") == concern:
            return
        if concern:
            log.warning("%s: %s", part, concern)
            self.concerns[part] = concern
        else:
            log.info("%s: well again", part)
            del self.concerns[part]
        self._tell_changed()

    def _tell_changed(self) -> None:
        for tell in self.changed:
            tell()

    def mark_failed(self, part: str, story: str) -> None:
        """Note that ``part`` is gone for good; its story stays in the status."""
        log.error("%s is FATAL: %s; the rest goes on", part, story)
        self.fatal[part] = story

    def note_child(self, report: ChildReport) -> None:
        """Keep the newest report of a child."""
        self.children[report.name] = report
        if report.name == "envoy" and report.state in {ChildState.EXITED, ChildState.BACKOFF, ChildState.FATAL}:
            self._was_ready = False

    def forget_ready(self) -> None:
        """What was ready under a previous kumadp is so no longer."""
        self._was_ready = False

    def note_version(self, program: str, version: str) -> None:
        """Another version of ``program`` runs now."""
        self.facts["versions"] = {**self.versions, program: version}

    @property
    def versions(self) -> dict[str, str]:
        """Versions by program, kumadp's own among them."""
        known = self.facts.get("versions")
        return {"kumadp": __version__, **(known if isinstance(known, dict) else {})}

    @property
    def ready_state(self) -> ReadyState:
        """The state alone, in kuma-dp's words (Kuma 2.14: readiness reporter)."""
        if self.phase is Phase.READY or (self.phase is Phase.STARTING and self._was_ready):
            return "READY"
        return "NOT_READY" if self.phase is Phase.STARTING else "TERMINATING"

    def snapshot(self) -> dict[str, object]:
        """Everything, for the owner-only control socket; `kumadp.daemon.status_schema` is its shape."""
        return {
            "name": self.name,
            "mesh": self.mesh,
            "pid": os.getpid(),
            "version": __version__,
            "mode": self.mode,
            "phase": self.phase.value,
            "why": self.phase_why,
            "since": self.since,
            "started": self.started,
            "ready": self.ready_state == "READY",
            "state": self.ready_state,
            "reasons": [f"{part}: {reason}" for part, reason in self.reasons.items()],
            "children": {name: _child(report) for name, report in self.children.items()},
            "concerns": [f"{part}: {concern}" for part, concern in self.concerns.items()],
            "fatal": dict(self.fatal),
            "ports": dict(self.ports),
            "counters": {kind: dict(counter) for kind, counter in self.counters.items()},
            "spent": {phase.value: round(seconds, 3) for phase, seconds in self.spent().items()},
            "descriptors": headroom(),
            "connections": connection_counts(),
            **self.facts,
            **{name: ask() for name, ask in self.asked.items()},
        }


def _child(report: ChildReport) -> dict[str, object]:
    return {
        "state": report.state.name,
        "pid": report.pid,
        "since": report.since,
        "started": report.started,
        "restarts": report.restarts,
        "last_exit": report.last_exit,
        "died": report.died,
        "causes": dict(report.causes),
        "reason": report.reason,
    }
