"""What a run of benchmarks measured: rounds, medians and ratios, as a table, as JSON and as a chart.

The JSON: ``rows`` has an object for each row of `tests.bench.goals` that was measured, with ``kumadp`` and ``peer``
(null without one), each with ``median``, ``low``, ``high`` and ``rounds``, and with ``ratio``, ``goal`` and ``met``.
``more`` has the rows that have no goal, as they are printed.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.bench.goals import GOALS, Goal
from tests.support.charts import Bar, bar_chart

if TYPE_CHECKING:
    from pathlib import Path

KUMADP, PEER = "kumadp", "peer"
ROUNDS = int(os.environ.get("KUMADP_BENCH_ROUNDS", "3"))
NO_PEER = "KUMADP_BENCH_PEER is not set: kumadp was measured alone"
SHOWN_RATIO = 2.0


@dataclass(frozen=True)
class Summary:
    """The rounds of one program."""

    median: float
    low: float
    high: float
    rounds: list[float]

    @classmethod
    def of(cls, rounds: list[float]) -> Summary:
        """Summarise rounds, at least one."""
        return cls(statistics.median(rounds), min(rounds), max(rounds), rounds)

    def __str__(self) -> str:
        spread = f" ({shorten(self.low)} to {shorten(self.high)})" if len(self.rounds) > 1 else ""
        return shorten(self.median) + spread


@dataclass(frozen=True)
class Row:
    """A goal with what was measured."""

    goal: Goal
    kumadp: Summary | None
    peer: Summary | None

    @property
    def ratio(self) -> float | None:
        """kumadp's median divided by the peer's."""
        if self.kumadp is None or self.peer is None or not self.peer.median:
            return None
        return self.kumadp.median / self.peer.median

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if that is not known."""
        return self.goal.is_met(self.kumadp.median, self.ratio) if self.kumadp is not None else None

    def to_json(self) -> dict[str, Any]:
        """Return what the file of figures has for it."""
        sides = {
            name: asdict(summary) if summary is not None else None
            for name, summary in ((KUMADP, self.kumadp), (PEER, self.peer))
        }
        goal = self.goal
        verdict = {"ratio": self.ratio, "goal": goal.shown, "met": self.met}
        return {"key": goal.key, "what": goal.what, "unit": goal.unit, **sides, **verdict}


def shorten(value: float) -> str:
    """Return three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass
class Figures:
    """Collects the rounds of a run. ``peer`` is the name of the other program, empty if there is none."""

    peer: str = ""
    more: list[tuple[str, str, str]] = field(default_factory=list)
    _rounds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, key: str, side: str, *values: float) -> None:
        """Add rounds of a row (`GOALS`) for `KUMADP` or `PEER`."""
        assert key in {goal.key for goal in GOALS}, key
        assert side in (KUMADP, PEER), side
        self._rounds.setdefault((key, side), []).extend(values)

    def _summary(self, key: str, side: str) -> Summary | None:
        rounds = self._rounds.get((key, side))
        return Summary.of(rounds) if rounds else None

    @property
    def rows(self) -> list[Row]:
        """The rows that were measured, in the order of `GOALS`."""
        rows = [Row(goal, self._summary(goal.key, KUMADP), self._summary(goal.key, PEER)) for goal in GOALS]
        return [row for row in rows if row.kumadp is not None or row.peer is not None]

    def table(self) -> str:
        """Return the rows as text: each with its goal, and whether it is met."""
        lines = [("WHAT", "KUMADP", self.peer.upper() or "-", "RATIO", "GOAL", "")]
        for row in self.rows:
            unit = f", {row.goal.unit}" if row.goal.unit else ""
            ratio = f"{row.ratio:.2f}x" if row.ratio is not None else "-"
            verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
            sides = (str(row.kumadp or "-"), str(row.peer or "-"))
            lines.append((row.goal.what + unit, *sides, ratio, row.goal.shown, verdict))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join(text if self.peer else [*text, NO_PEER]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        host = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        rows = [row.to_json() for row in self.rows]
        more = [{"what": what, "median": median, "rounds": rounds} for what, median, rounds in self.more]
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"at": at, "host": host, "peer": self.peer or None, "rows": rows, "more": more}

    def chart(self) -> str:
        """Return the ratios as SVG, with a mark where the goal is."""
        bars = []
        for row in self.rows:
            if row.ratio is None or row.kumadp is None or row.peer is None:
                continue
            goal = row.goal
            limit = goal.most if goal.most is not None else goal.least
            mark = limit if goal.ratio or limit is None else limit / row.peer.median
            label = f"{row.ratio:.2f}x ({shorten(row.kumadp.median)} / {shorten(row.peer.median)} {goal.unit})"
            bars.append(Bar(goal.what, row.ratio, label, mark, row.met))
        return bar_chart(f"kumadp / {self.peer}: 1 is equal, a line marks the goal", bars, SHOWN_RATIO)

    def write(self, folder: Path) -> None:
        """Write ``figures.json``, and ``figures.svg`` if there is something to compare."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "figures.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")
        if any(row.ratio is not None for row in self.rows):
            (folder / "figures.svg").write_text(self.chart())
