"""State of the world or delta: chosen by the bootstrap, changed on a sign alone."""

from __future__ import annotations

import pytest

from kumadp.grpc.call import UNIMPLEMENTED
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.refusal import StreamRefusal

SOTW, DELTA = XdsProtocol.SOTW, XdsProtocol.DELTA
UNKNOWN = 2


class Plane:
    """A control plane whose bootstrap names ``speaks``; None: it sends none."""

    def __init__(self, speaks: XdsProtocol | None) -> None:
        self.speaks = speaks
        self.queries = 0

    async def query(self) -> XdsProtocol | None:
        self.queries += 1
        return self.speaks

    def choice(self, first: XdsProtocol = SOTW, *, stale: bool = False) -> ProtocolChoice:
        return ProtocolChoice(first, self.query, stale=stale)


@pytest.mark.parametrize("first", XdsProtocol)
async def test_the_first_stream_is_of_the_bootstrap_in_hand(first: XdsProtocol) -> None:
    plane = Plane(None)
    choice = plane.choice(first)
    assert await choice.before_stream() is first
    assert plane.queries == 0


async def test_a_bootstrap_from_disk_is_not_trusted() -> None:
    plane = Plane(DELTA)
    choice = plane.choice(stale=True)
    assert await choice.before_stream() is DELTA
    assert choice.present is DELTA
    assert await choice.before_stream() is DELTA
    assert plane.queries == 1


@pytest.mark.parametrize("refusal", [refusal for refusal in StreamRefusal if refusal is not StreamRefusal.ACTIVE])
async def test_after_a_stream_the_bootstrap_is_queried(refusal: StreamRefusal) -> None:
    plane = Plane(DELTA)
    choice = plane.choice()
    await choice.before_stream()
    assert not choice.note_end(refusal, UNKNOWN)
    assert choice.present is SOTW
    assert await choice.before_stream() is DELTA


async def test_a_stream_that_is_still_held_is_requested_again_without_a_query() -> None:
    plane = Plane(DELTA)
    choice = plane.choice()
    assert not choice.note_end(StreamRefusal.ACTIVE, UNKNOWN)
    assert await choice.before_stream() is SOTW
    assert plane.queries == 0


async def test_after_a_stream_that_was_closed_by_us_the_bootstrap_is_queried() -> None:
    choice = Plane(DELTA).choice()
    choice.note_closed()
    assert await choice.before_stream() is DELTA


async def test_without_a_bootstrap_the_last_protocol_stays_and_the_query_is_repeated() -> None:
    plane = Plane(None)
    choice = plane.choice(DELTA)
    choice.note_end(StreamRefusal.UNREACHABLE, None)
    assert await choice.before_stream() is DELTA
    plane.speaks = SOTW
    assert await choice.before_stream() is SOTW
    assert plane.queries == 2


@pytest.mark.parametrize("named", XdsProtocol)
async def test_unimplemented_means_the_other_one_at_once_and_from_then_on(named: XdsProtocol) -> None:
    plane = Plane(named)
    choice = plane.choice(named)
    other = SOTW if named is DELTA else DELTA
    assert choice.note_end(StreamRefusal.OTHER, UNIMPLEMENTED)
    assert await choice.before_stream() is other
    assert plane.queries == 0
    choice.note_end(StreamRefusal.UNREACHABLE, None)
    assert await choice.before_stream() is other
    assert plane.queries == 1


async def test_another_control_plane_may_implement_it() -> None:
    plane = Plane(SOTW)
    choice = plane.choice(SOTW)
    choice.note_end(StreamRefusal.OTHER, UNIMPLEMENTED)
    for speaks in (DELTA, SOTW):
        plane.speaks = speaks
        choice.note_end(StreamRefusal.UNREACHABLE, None)
        assert await choice.before_stream() is speaks


async def test_a_control_plane_that_implements_neither_is_not_retried_at_once() -> None:
    choice = Plane(SOTW).choice()
    assert choice.note_end(StreamRefusal.OTHER, UNIMPLEMENTED)
    assert not choice.note_end(StreamRefusal.OTHER, UNIMPLEMENTED)
    assert await choice.before_stream() is SOTW


async def test_a_silent_stream_is_wrong_only_if_the_bootstrap_names_the_other_one() -> None:
    plane = Plane(SOTW)
    choice = plane.choice()
    assert not await choice.is_wrong()
    plane.speaks = None
    assert not await choice.is_wrong()
    assert choice.present is SOTW
    plane.speaks = DELTA
    assert await choice.is_wrong()
    assert await choice.before_stream() is DELTA
    assert not await choice.is_wrong()


async def test_silence_of_the_one_that_replaced_an_unimplemented_one_brings_that_back() -> None:
    """The control plane is another one by now, of a version that leaves delta unanswered."""
    plane = Plane(SOTW)
    choice = plane.choice()
    choice.note_end(StreamRefusal.OTHER, UNIMPLEMENTED)
    assert choice.present is DELTA
    assert await choice.is_wrong()
    assert await choice.before_stream() is SOTW
