"""The daemon's state: phase, reasons why it is not ready, warnings, children, ports.

One writer (the run loop and the components' callbacks, all on the event loop), many readers: the readiness port shows
the state alone, the owner-only control socket everything.
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
from kumadp.host.net.connection_limit import ConnectionLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.daemon")

ReadyState = Literal["READY", "NOT_READY", "TERMINATING"]


class Status:
    """The daemon's state, for readiness, log, control socket and service manager.

    ``moved`` are called with each new phase, ``changed`` after each change of a reason or a warning, ``progressed``
    again and again while an Envoy comes up and makes progress.
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
        self.connections = ConnectionLimits()
        self.facts: dict[str, object] = {}
        self._sections: list[Callable[[], Mapping[str, object]]] = []
        self.counters: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        """Counts of those that have no section, by kind."""
        self.warnings: dict[str, str] = {}
        self.moved: list[Callable[[Phase, str], None]] = []
        self.changed: list[Callable[[], None]] = []
        self.progressed: list[Callable[[], None]] = []
        self._spent = dict.fromkeys(Phase, 0.0)
        self._moved_at = time.monotonic()
        self._was_ready = False

    def spent(self) -> dict[Phase, float]:
        """Return the seconds in each phase so far."""
        return {**self._spent, self.phase: self._spent[self.phase] + time.monotonic() - self._moved_at}

    def move(self, phase: Phase, why: str) -> None:
        """Move to ``phase`` and log why; raises IllegalMove if the table has no such move."""
        if phase is self.phase:
            return
        check_move(self.phase, phase)
        self._spent[self.phase] = self.spent()[self.phase]
        log.info("%s -> %s: %s", self.phase.value, phase.value, why)
        self.phase, self.phase_why, self.since = phase, why, time.time()
        self._moved_at = time.monotonic()
        self._was_ready = False
        for callback in self.moved:
            callback(phase, why)

    def add_section(self, section: Callable[[], Mapping[str, object]]) -> None:
        """Have these keys in each `snapshot`; JSON types."""
        self._sections.append(section)

    def resume(self, *, ready: bool, started: float | None) -> None:
        """Continue the state of a kumadp that was replaced: if it was ``ready``, this one is until it knows better.

        ``started`` in seconds since 1970, None: now.
        """
        if started is not None:
            self.started = started
        self._was_ready = ready

    def set_not_ready(self, part: str, reason: str) -> None:
        """Note why ``part`` prevents readiness; an empty reason clears the note. Logged when it changes."""
        if self.reasons.get(part, "") == reason:
            return
        if reason:
            log.info("waiting: %s: %s", part, reason)
            self.reasons[part] = reason
        else:
            del self.reasons[part]
        self._notify_changed()

    def set_warning(self, part: str, warning: str) -> None:
        """Note what is wrong with ``part`` although traffic flows; an empty warning clears the note. Logged."""
        if self.warnings.get(part, "") == warning:
            return
        if warning:
            log.warning("%s: %s", part, warning)
            self.warnings[part] = warning
        else:
            log.info("%s: recovered", part)
            del self.warnings[part]
        self._notify_changed()

    def _notify_changed(self) -> None:
        for callback in self.changed:
            callback()

    def mark_failed(self, part: str, story: str) -> None:
        """Note that ``part`` has failed permanently; the reason stays in the status."""
        log.error("%s failed permanently: %s; other components keep running", part, story)
        self.fatal[part] = story

    def note_child(self, report: ChildReport) -> None:
        """Keep the newest report of a child."""
        self.children[report.name] = report

    def forget_ready(self) -> None:
        """Stop reporting the readiness of a previous kumadp."""
        self._was_ready = False

    def note_version(self, program: str, version: str) -> None:
        """Another version of ``program`` runs now."""
        self.facts["versions"] = {**self.versions, program: version}

    @property
    def versions(self) -> dict[str, str]:
        """Versions by program, kumadp's own among them."""
        versions = self.facts.get("versions")
        return {"kumadp": __version__, **(versions if isinstance(versions, dict) else {})}

    @property
    def ready_state(self) -> ReadyState:
        """The state alone, in kuma-dp's words (Kuma 2.14: readiness reporter)."""
        if self.phase is Phase.READY or (self.phase is Phase.STARTING and self._was_ready):
            return "READY"
        return "NOT_READY" if self.phase is Phase.STARTING else "TERMINATING"

    def snapshot(self) -> dict[str, object]:
        """Return everything, for the owner-only control socket; `kumadp.daemon.status_schema` is its shape."""
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
            "concerns": [f"{part}: {warning}" for part, warning in self.warnings.items()],
            "fatal": dict(self.fatal),
            "ports": dict(self.ports),
            "counters": {kind: dict(counter) for kind, counter in self.counters.items()},
            "spent": {phase.value: round(seconds, 3) for phase, seconds in self.spent().items()},
            "descriptors": headroom(),
            "connections": self.connections.status(),
            **self.facts,
            **{key: value for section in self._sections for key, value in section().items()},
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
