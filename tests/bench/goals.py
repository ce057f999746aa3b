"""The rows of the comparison with kuma-dp: what is measured, and the goal of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One row. ``most``: kumadp's median is at most this (``least``: at least).

    ``ratio``: the limit is for kumadp's median divided by kuma-dp's. A row without a limit is shown only.
    """

    key: str
    what: str
    unit: str
    most: float | None = None
    least: float | None = None
    ratio: bool = False

    @property
    def shown(self) -> str:
        """The goal as text."""
        if self.most is None and self.least is None:
            return ""
        sign, limit = ("<=", self.most) if self.most is not None else (">=", self.least)
        return f"{sign} {limit:g}{'x' if self.ratio else f' {self.unit}'.rstrip()}"

    def is_met(self, median: float, ratio: float | None) -> bool | None:
        """Return whether the goal is met; None if there is none, or nothing to compare with."""
        value = ratio if self.ratio else median
        if value is None or (self.most is None and self.least is None):
            return None
        return value <= self.most if self.most is not None else value >= (self.least or 0.0)


GOALS = (
    Goal("start.first_answer", "exec to the first answer through the mesh", "s", most=1.0, ratio=True),
    Goal("start.cpu", "processor time of the supervisor until then", "s", most=0.40),
    Goal("start.bootstrap_request", "exec to the bootstrap request", "s", most=0.15),
    Goal("start.ready_after", "READY after the first answer, default settings", "s", most=0.1),
    Goal("start.pss", "memory (PSS) in the mesh, after 3 s", "MiB", most=0.55, ratio=True),
    Goal("thousand.first_answer", "1,000 services: exec to the first answer", "s", most=8.0),
    Goal("thousand.outage", "1,000 services: outage after kill -9 of Envoy", "s", most=6.0),
    Goal("thousand.pss", "1,000 services: memory (PSS)", "MiB", most=0.60, ratio=True),
    Goal("thousand.rest", "1,000 services: processor time at rest, first 8 s", "ms/s", most=1.0),
    Goal("thousand.reload_failed", "1,000 services: reloads that failed", "", most=0.0),
    Goal("thousand.reload_lost", "1,000 services: requests lost by a reload", "", most=0.0),
    Goal("thousand.envoy_rss", "1,000 services: memory of Envoy (RSS)", "MB"),
    Goal("probe.cpu_1", "probe: processor time, 1 connection", "ms", most=0.67, ratio=True),
    Goal("probe.cpu_16", "probe: processor time, 16 connections", "ms", most=0.67, ratio=True),
    Goal("probe.p99_16", "probe: p99 at 16 connections", "ms", most=0.5, ratio=True),
    Goal("probe.rate_16", "probes at 16 connections", "/s", least=1.5, ratio=True),
    Goal("dns.cpu", "DNS answer: processor time, full load, 127.0.0.1", "us", most=0.5, ratio=True),
    Goal("dns.cpu_all", "DNS answer: processor time, full load, 0.0.0.0", "us", most=0.5, ratio=True),
    Goal("dns.cpu_steady", "DNS answer: processor time, 5,000/s", "us"),
    Goal("scrape.clusters", "scrape of 94,000 lines, clusters merged: processor time", "s", most=0.5, ratio=True),
    Goal("scrape.mesh_metric", "the same by a MeshMetric that wants all", "s", most=0.1, ratio=True),
    Goal("scrape.memory", "scrape, clusters merged: more memory at its peak", "MB"),
    Goal("storm.peak_10000", "simulated: most requests a second, 10,000 sidecars", "/s", most=0.05, ratio=True),
    Goal("storm.peak_100000", "simulated: most requests a second, 100,000 sidecars", "/s", most=0.05, ratio=True),
)
