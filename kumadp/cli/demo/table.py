"""The demo's table: what runs where, in which state, and a command to try for each. Pure but for `Screen`."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from typing import TYPE_CHECKING, Any, TextIO

from msgspec import Struct

from kumadp.cli.demo.stage import HOST
from kumadp.cli.modules import shell_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kumadp.cli.demo.stage import DemoPorts

HEADINGS = ("WHAT", "WHERE", "STATE", "TRY")
UP = "up"
DOWN = "down"


class Row(Struct, frozen=True):
    """One row of the table."""

    what: str
    where: str
    state: str
    command: str


class Scene(Struct, frozen=True):
    """Facts for the table that are not in the status; the drain time is in seconds."""

    ports: DemoPorts
    mesh: Path
    drain_seconds: float
    workload_runs: bool


def dns_command(port: int, name: str = "backend.mesh") -> str:
    """Return a command that queries ``name``: dig, or a module of kumadp if there is no dig."""
    if shutil.which("dig"):
        return f"dig +short @{HOST} -p {port} {name}"
    return f"{shell_command('kumadp.cli.demo.dns')} {port} {name}"


def rows(scene: Scene, status: Mapping[str, Any] | None) -> list[Row]:
    """Return the rows of the table for this status."""
    ports = scene.ports
    children: Mapping[str, Mapping[str, Any]] = (status or {}).get("children", {})
    envoy = children.get("envoy", {})
    traffic = _traffic(status, envoy)
    ours = UP if status else DOWN
    workload = UP if scene.workload_runs else DOWN
    url = f"http://{HOST}"
    pid = envoy.get("pid")
    return [
        Row("workload web", f"{HOST}:{ports.workload}", workload, f"curl {url}:{ports.workload}/"),
        Row("workload backend", f"{HOST}:{ports.backend}", workload, f"curl {url}:{ports.backend}/"),
        Row("Envoy", f"pid {pid}" if pid else "-", child_state(envoy), f"kill -9 {pid}" if pid else "-"),
        Row("inbound web", f"{HOST}:{ports.inbound}", traffic, f"curl -i {url}:{ports.inbound}/"),
        Row("outbound backend", f"{HOST}:{ports.outbound}", traffic, f"curl -i {url}:{ports.outbound}/"),
        Row(
            "virtual probes",
            f"{HOST}:{ports.probes}",
            ours,
            f"curl -i {url}:{ports.probes}/{ports.workload}/healthz",
        ),
        Row("readiness", f"{HOST}:{ports.readiness}", ours, f"curl -i {url}:{ports.readiness}/ready"),
        Row("Envoy's admin", f"{HOST}:{ports.admin}", traffic, f"curl {url}:{ports.admin}/server_info"),
        _dns_row(ports, children, ours),
    ]


def _traffic(status: Mapping[str, Any] | None, envoy: Mapping[str, Any]) -> str:
    """Return the state of what goes through Envoy; while it drains, requests are still answered."""
    if status is None or envoy.get("state") != "RUNNING":
        return DOWN
    if status.get("phase") == "DRAINING":
        return "draining"
    return UP if status.get("ready") else DOWN


def _dns_row(ports: DemoPorts, children: Mapping[str, Mapping[str, Any]], ours: str) -> Row:
    coredns = children.get("coredns")
    who, state = ("CoreDNS", child_state(coredns)) if coredns else ("embedded resolver", ours)
    return Row(f"DNS ({who})", f"{HOST}:{ports.dns}", state, dns_command(ports.dns))


def child_state(child: Mapping[str, Any]) -> str:
    """Return the state of a child with the number of its restarts."""
    if not child:
        return DOWN
    state = str(child.get("state", "")).lower()
    restarts = int(child.get("restarts") or 0)
    return f"{state}, {restarts} restart{'s' if restarts > 1 else ''}" if restarts else state


def failures(status: Mapping[str, Any] | None) -> list[str]:
    """Return lines for parts that failed permanently, and for the last exit of each child that was restarted."""
    fatal: Mapping[str, str] = (status or {}).get("fatal", {})
    lines = [f"FAILED permanently: {part}: {reason}" for part, reason in fatal.items()]
    for name, child in (status or {}).get("children", {}).items():
        if name not in fatal and child.get("last_exit"):
            lines.append(f"Last exit: {child['last_exit']}")
    return lines


def headline(scene: Scene, status: Mapping[str, Any] | None, now: float) -> str:
    """Return the line above the table: phase and reason, or remaining drain time. ``now`` in seconds since 1970."""
    if status is None:
        return "kumadp: starting"
    phase = str(status.get("phase"))
    if phase == "DRAINING":
        remaining = max(0, math.ceil(float(status["since"]) + scene.drain_seconds - now))
        return f"kumadp: DRAINING, {remaining} s left for requests in flight (Ctrl-C again ends it early)"
    reasons = "; ".join(map(str, status.get("reasons") or ()))
    if phase == "STARTING" and reasons:
        return f"kumadp: STARTING, waiting: {reasons}"
    since = time.strftime("%H:%M:%S", time.localtime(float(status["since"])))
    return f"kumadp: {phase} since {since} (pid {status.get('pid')})"


def footer(scene: Scene, table: Sequence[Row]) -> list[str]:
    """Return the lines below the table: what else to try."""
    kill = next((row.command for row in table if row.command.startswith("kill")), "")
    slow = f"curl http://{HOST}:{scene.ports.inbound}/slow"
    lines = [f"Kill Envoy ({kill}): it is restarted, and virtual probes keep answering."] if kill else []
    return [
        *lines,
        f"Edit {scene.mesh}/*.yaml: changes are applied within a second, without a restart.",
        f"Ctrl-C drains and stops everything; requests in flight are finished first ({slow}).",
    ]


def render(scene: Scene, status: Mapping[str, Any] | None, now: float) -> list[str]:
    """Return all lines, without trailing spaces."""
    table = rows(scene, status)
    cells = [HEADINGS, *((row.what, row.where, row.state, row.command) for row in table)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)), line[-1]])
        for line in cells
    ]
    return [headline(scene, status, now), *failures(status), "", *lines, "", *footer(scene, table)]


class Screen:
    """A terminal on which each table is drawn over the previous one; nothing is written if nothing has changed.

    Lines that do not fit are left out, because lines that have scrolled off a terminal cannot be overwritten.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: list[str] = []

    def show(self, lines: list[str]) -> None:
        """Draw ``lines`` over the previous ones."""
        size = shutil.get_terminal_size()
        heights = itertools.accumulate(_height(line, size.columns) for line in lines)
        # One row less than the terminal has: the cursor ends below the last line.
        lines = [line for line, height in zip(lines, heights, strict=True) if height < size.lines]
        if lines == self._shown:
            return
        # CSI n F: to the start of the line n lines up; CSI J: clear to the end of the screen (ECMA-48).
        up = min(sum(_height(line, size.columns) for line in self._shown), size.lines - 1)
        back = f"\x1b[{up}F\x1b[J" if self._shown else ""
        self._out.write(back + "\n".join(lines) + "\n")
        self._out.flush()
        self._shown = lines


def _height(line: str, columns: int) -> int:
    return max(1, math.ceil(len(line) / columns))
