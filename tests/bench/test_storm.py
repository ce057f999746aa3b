"""10,000 and 100,000 sidecars lose a control plane of fixed capacity at once, on a simulated clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.conftest import OUT
from tests.support.charts import Series, line_chart
from tests.support.storm import KumaDp, RunningKumadp, Sidecar, StartingKumadp, Storm, simulate

if TYPE_CHECKING:
    from tests.bench.figures import Figures

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

# Sidecars that the control plane can serve in a second.
CAPACITY = 500.0
OUTAGE = 120.0
FLEETS: dict[str, type[Sidecar]] = {
    "kumadp, running": RunningKumadp,
    "kuma-dp, constant 3 s": KumaDp,
    "kumadp, starting": StartingKumadp,
}


def note(table: list[tuple[str, str, str]], name: str, storm: Storm, peer: Storm) -> None:
    half = storm.served[storm.sidecars // 2]
    table.append((f"{name}: most requests in a second", f"{storm.peak}", f"1/{peer.peak / storm.peak:.1f}"))
    table.append((f"{name}: half, all served after", f"{storm.all_served:.0f} s", f"half {half:.0f} s"))
    table.append((f"{name}: requests", f"{sum(storm.each_second)}", ""))


@pytest.mark.goals
def test_a_long_outage(figures: Figures, table: list[tuple[str, str, str]]) -> None:
    series = []
    for sidecars in (10_000, 100_000):
        storms = {name: simulate(make, sidecars, outage=OUTAGE, capacity=CAPACITY) for name, make in FLEETS.items()}
        peer = storms["kuma-dp, constant 3 s"]
        for name, storm in storms.items():
            note(table, f"{sidecars:,} {name}", storm, peer)
        if sidecars == 100_000:
            series = [Series(name, list(enumerate(map(float, storm.each_second)))) for name, storm in storms.items()]
        worst = max(storm.peak for name, storm in storms.items() if name.startswith("kumadp"))
        figures.add(f"storm.peak_{sidecars}", "kumadp", float(worst))
        figures.add(f"storm.peak_{sidecars}", "peer", float(peer.peak))
    OUT.mkdir(parents=True, exist_ok=True)
    title = f"100,000 sidecars after an outage of {OUTAGE:.0f} s, a control plane that serves {CAPACITY:.0f} a second"
    chart = line_chart(title, series, x="seconds since it is back", y="requests in each second")
    (OUT / "storm.svg").write_text(chart)


def test_shorter_and_longer_outages(table: list[tuple[str, str, str]]) -> None:
    for outage in (10.0, 30.0, 45.0, 60.0, 90.0, 300.0):
        peer = simulate(KumaDp, 10_000, outage=outage, capacity=CAPACITY)
        for name in ("kumadp, running", "kumadp, starting"):
            storm = simulate(FLEETS[name], 10_000, outage=outage, capacity=CAPACITY)
            note(table, f"{outage:.0f} s, 10,000 {name}", storm, peer)
