"""For how long Envoy keeps a cluster that the control plane has removed."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import pytest

from kumadp.relay.held_clusters import LISTENERS_WITHIN, LONGEST_WAIT, MARGIN, MOST_HELD, HeldClusters
from kumadp.relay.messages import CLUSTER, Response, encode_response
from tests.relay.harness import any_of

if TYPE_CHECKING:
    from kumadp.relay.resources import XdsResource

DRAIN = 30.0


def clusters(*names: str) -> dict[str, XdsResource]:
    return Response.parse(encode_response(CLUSTER, "1", [any_of(name) for name in names])).by_name


@pytest.fixture
def held() -> HeldClusters:
    """Cluster a is removed, at 100 s, after seven responses were sent."""
    held = HeldClusters(DRAIN)
    held.update(clusters("a", "b"), clusters("b", "c"), sent=7)
    assert held.next_tick() == -inf
    assert not held.tick(100.0)
    return held


def test_nothing_is_held_at_first() -> None:
    assert HeldClusters(DRAIN).next_tick() is None
    assert not HeldClusters(DRAIN).tick(1.0)


def test_it_goes_when_the_previous_listeners_have_drained(held: HeldClusters) -> None:
    assert set(held.resources) == {"a"}
    # Listeners sent before the removal use it.
    held.listeners_accepted(7)
    assert held.next_tick() == 100.0 + DRAIN + MARGIN
    held.listeners_accepted(8)
    assert held.next_tick() == -inf
    assert not held.tick(101.0)
    held.listeners_accepted(9)
    assert not held.tick(102.0)
    assert held.next_tick() == 101.0 + DRAIN + MARGIN
    assert not held.tick(101.0 + DRAIN)
    assert held.tick(101.0 + DRAIN + MARGIN)
    assert not held.resources
    assert held.next_tick() is None


@pytest.mark.parametrize(("drain", "waits"), [(1.0, LISTENERS_WITHIN), (30.0, 32.0), (600.0, LONGEST_WAIT)])
def test_without_new_listeners_it_goes_after_both_waits(drain: float, waits: float) -> None:
    held = HeldClusters(drain)
    held.update(clusters("a"), {}, sent=0)
    held.tick(100.0)
    assert held.next_tick() == 100.0 + waits


def test_another_drain_time_is_used_at_once(held: HeldClusters) -> None:
    held.set_drain_time(20.0)
    assert held.next_tick() == 100.0 + 20.0 + MARGIN


def test_one_that_comes_back_is_not_held_any_more(held: HeldClusters) -> None:
    held.update(clusters("b", "c"), clusters("a", "b"), sent=8)
    assert set(held.resources) == {"c"}


def test_it_stays_while_it_is_accepted_and_absent_with_its_first_times(held: HeldClusters) -> None:
    held.update(clusters("a", "b"), clusters("b"), sent=9)
    assert held.next_tick() == 100.0 + DRAIN + MARGIN


def test_their_number_is_bounded() -> None:
    held = HeldClusters(DRAIN)
    held.update(clusters(*(f"c{number}" for number in range(MOST_HELD + 1))), {}, sent=0)
    assert len(held.resources) == MOST_HELD
