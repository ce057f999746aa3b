"""Which resource a response is rejected for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.relay.messages import CLUSTER, Response, encode_response
from kumadp.relay.narrowing import MOST_ATTEMPTS, Narrowing, names_in
from tests.relay.harness import any_of

if TYPE_CHECKING:
    from kumadp.relay.resources import XdsResource

ENVOYS_TEXT = "Error adding/updating cluster(s) a-b: ring hash: minimum_ring_size, 'c.d:80': it's \"bad\""


def resources(count: int) -> dict[str, XdsResource]:
    names = [any_of(f"r{number}") for number in range(count)]
    return Response.parse(encode_response(CLUSTER, "1", names)).by_name


def search(narrowing: Narrowing, given: dict[str, XdsResource], bad: set[str]) -> int:
    """Answer as an Envoy that names nothing does, until there is nothing left to try; return how often it rejects."""
    rejections = 0
    accepted: set[str] = set()
    while True:
        excluded = narrowing.excluded()
        offered = {name: resource for name, resource in given.items() if resource.key not in excluded}
        if bad.isdisjoint(offered):
            accepted |= offered.keys()
            if not narrowing.pending:
                return rejections
            narrowing.accepted()
        else:
            rejections += 1
            unknown = [resource for name, resource in offered.items() if name not in accepted]
            assert narrowing.rejected([], unknown, "it is bad", search=True)


def test_words_that_can_be_names() -> None:
    assert {"a-b", "c.d:80", "bad"} <= names_in(ENVOYS_TEXT)
    assert "" not in names_in("a: , b")


def test_resources_that_envoy_names_are_refused_alone_also_accepted_ones() -> None:
    narrowing, given = Narrowing(), resources(3)
    known, *unknown = given.values()
    assert narrowing.rejected([known], unknown, "listener(s) r0: cannot bind, r2: cannot bind", search=True)
    assert narrowing.refused.keys() == {given["r0"].key, given["r2"].key}
    assert not narrowing.pending
    assert "r2: cannot bind" in narrowing.reason(given["r2"].key)


def test_a_name_in_our_own_words_is_none_of_envoys() -> None:
    narrowing, given = Narrowing(), resources(2)
    narrowing.rejected([], list(given.values()), "r0", search=False)
    assert not narrowing.refused
    assert narrowing.excluded() == {resource.key for resource in given.values()}


def test_accepted_resources_are_suspects_if_there_are_no_others() -> None:
    narrowing, (known, unknown) = Narrowing(), resources(2).values()
    assert not narrowing.rejected([], [], "no", search=True)
    assert narrowing.rejected([known], [unknown], "no", search=True)
    assert narrowing.excluded() == {unknown.key}
    assert narrowing.rejected([known], [], "no", search=True)
    assert narrowing.excluded() == {unknown.key, known.key}


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_one_bad_resource_that_envoy_does_not_name_is_found(count: int) -> None:
    narrowing, given = Narrowing(), resources(count)
    bad = f"r{count // 3}"
    rejections = search(narrowing, given, {bad})
    assert narrowing.excluded() == {given[bad].key}
    assert rejections <= count.bit_length() + 1


def test_attempts_are_bounded() -> None:
    narrowing, given = Narrowing(), resources(100)
    bad = {f"r{number}" for number in range(0, 100, 2)}
    assert search(narrowing, given, bad) <= MOST_ATTEMPTS + 50
    assert {given[name].key for name in bad} <= narrowing.excluded()


def test_a_late_rejection_is_of_what_is_not_given_any_more() -> None:
    narrowing, given = Narrowing(), resources(4)
    known, *unknown = given.values()
    assert narrowing.rejected([], unknown, "unanswered", search=False)
    assert narrowing.rejected([known], [], "Error adding/updating cluster(s) r2: it is bad", search=True)
    assert narrowing.refused.keys() == {given["r2"].key}
    assert narrowing.tried == {given["r1"].key, given["r3"].key}
    # Of something that is forgotten: what Envoy runs is not at fault.
    assert not narrowing.rejected([known], [], "Error adding/updating cluster(s) r9: it is bad", search=True)


def test_of_two_unanswered_resources_of_one_name_neither_is_refused() -> None:
    narrowing = Narrowing()
    unanswered = {("new", b"first"), ("new", b"second")}
    assert narrowing.rejected([], [], "Error adding/updating cluster(s) new: bad", search=True, unanswered=unanswered)
    assert narrowing.excluded() == set()
