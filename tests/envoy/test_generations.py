"""Generations of Envoy, across starts, ends and an adoption."""

from __future__ import annotations

import pytest

from kumadp.envoy.generations import Generations
from kumadp.envoy.options import EpochCallbacks

Seen = list[tuple[object, ...]]


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
def generations(seen: Seen) -> Generations:
    return Generations(
        EpochCallbacks(
            on_started=lambda number, pid: seen.append(("started", number, pid)),
            on_live=lambda number: seen.append(("live", number)),
            on_ended=lambda number, pid, expected: seen.append(("ended", number, pid, expected)),
        )
    )


def test_each_envoy_has_the_next_number(generations: Generations, seen: Seen) -> None:
    generations.started(10)
    generations.live()
    generations.started(11)
    generations.live()
    generations.ended(10, expected=True)
    generations.ended(11, expected=False)
    assert seen == [
        ("started", 0, 10),
        ("live", 0),
        ("started", 1, 11),
        ("live", 1),
        ("ended", 0, 10, True),
        ("ended", 1, 11, False),
    ]


def test_an_adopted_envoy_keeps_its_number(generations: Generations, seen: Seen) -> None:
    generations.begin_at(7)
    generations.started(10)
    assert (seen, generations.newest) == ([("started", 7, 10)], 7)


def test_the_end_of_an_unknown_one_counts_for_the_newest(generations: Generations, seen: Seen) -> None:
    generations.started(10)
    generations.ended(99, expected=False)
    assert seen[-1] == ("ended", 0, 99, False)
