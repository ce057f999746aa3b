"""The programs that are compared: a clean install of kumadp, and a kuma-dp that KUMADP_BENCH_PEER names."""

from __future__ import annotations

import functools
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import KUMADP, PEER, ROUNDS
from tests.support.clean_install import install

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Side:
    """A program to measure: `KUMADP` or `PEER`, its name, and the command."""

    key: str
    name: str
    command: str

    @property
    def is_ours(self) -> bool:
        return self.key == KUMADP


@functools.cache
def _environment() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kumadp-bench")


@functools.cache
def kumadp_side() -> Side:
    """A clean install of this checkout, made once a run."""
    return Side(KUMADP, "kumadp", str(install(Path(_environment().name) / "venv")))


def peer_side() -> Side | None:
    """The kuma-dp, if there is one."""
    peer = os.environ.get("KUMADP_BENCH_PEER")
    return Side(PEER, Path(peer).name, peer) if peer else None


def sides() -> list[Side]:
    """Both, or kumadp alone; KUMADP_BENCH_ONLY=peer leaves kumadp out."""
    peer = peer_side()
    ours = [] if os.environ.get("KUMADP_BENCH_ONLY") == PEER else [kumadp_side()]
    return [*ours, *([peer] if peer is not None else [])]


def in_turn(rounds: int = ROUNDS) -> Iterator[tuple[int, Side]]:
    """Yield A B A B: a round of each, again and again, so that whatever else the host does meets both."""
    for number in range(rounds):
        for side in sides():
            yield number, side
