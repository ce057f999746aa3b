"""Sets of resources in delta: where each is in the message is known without reading the message again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumadp.relay.delta_messages import DeltaResource, version_of
from kumadp.relay.messages import CLUSTER, Outline, Response, encode_response
from kumadp.relay.protobuf import BadMessage, field_bytes, field_text, field_varint
from kumadp.relay.resource_set import ResourceSet
from kumadp.relay.resources import name_at, value_at

OUTLINE = Outline(CLUSTER, "7", "3")
NAMES = st.text("abc", min_size=1, max_size=2)
# Lengths that take one, two and three bytes.
SIZES = st.sampled_from([0, 1, 100, 127, 128, 300, 16_383, 16_384])
CONTENTS = st.dictionaries(NAMES, SIZES, max_size=6)


def resource(name: str, size: int = 0) -> bytes:
    return field_text(1, CLUSTER) + field_bytes(2, field_text(1, name) + field_bytes(9, b"x" * size))


def changed(name: str, data: bytes) -> dict[str, DeltaResource]:
    return {name: DeltaResource(memoryview(data), version_of(data, 0, len(data)))}


def described(response: Response) -> dict[str, tuple[str, bytes, bytes]]:
    return {key: (one.name, one.digest, bytes(one.raw)) for key, one in response.by_name.items()}


@given(CONTENTS, CONTENTS, st.sets(NAMES))
def test_places_are_those_in_the_message(before: dict[str, int], new: dict[str, int], removed: set[str]) -> None:
    first = encode_response(CLUSTER, "1", [resource(*item) for item in before.items()], "1")
    held = ResourceSet.parse(first)
    resources = {name: one for item in new.items() for name, one in changed(item[0], resource(*item)).items()}
    wanted = {name: size for name, size in before.items() if name not in removed} | new
    after, response = held.with_changes(OUTLINE, resources, removed, largest=1 << 20)
    assert response.places is not None
    assert described(response) == described(Response.parse(response.raw))
    assert {name: bytes(one.raw) for name, one in response.by_name.items()} == {
        name: resource(name, size) for name, size in wanted.items()
    }
    again = ResourceSet.parse(response.raw)
    assert (again.versions(), again.size) == (after.versions(), after.size)
    # And once more, from places that were moved.
    _, last = after.with_changes(OUTLINE, changed("new", resource("new")), (), largest=1 << 20)
    assert described(last) == described(Response.parse(last.raw))
    assert set(last.by_name) == {*wanted, "new"}


def test_a_resource_under_another_name_is_read_from_the_message() -> None:
    held, response = ResourceSet().with_changes(OUTLINE, changed("alias", resource("own")), (), largest=1 << 20)
    assert response.places is None
    assert set(response.by_name) == {"own"}
    _, response = held.with_changes(OUTLINE, changed("b", resource("b")), (), largest=1 << 20)
    assert set(response.by_name) == {"own", "b"}
    assert set(held.only({"alias"}).versions()) == {"alias"}


def test_what_is_too_large_is_rejected() -> None:
    with pytest.raises(BadMessage, match="at most 100 are accepted"):
        ResourceSet().with_changes(OUTLINE, changed("a", resource("a", 100)), (), largest=100)


def test_a_length_in_more_bytes_than_it_needs() -> None:
    one = resource("a")
    assert len(one) < 128
    with pytest.raises(BadMessage, match="unusual"):
        ResourceSet.parse(b"\x12" + bytes([len(one) | 0x80, 0]) + one + field_text(4, CLUSTER))


@pytest.mark.parametrize(
    ("data", "name", "is_usual"),
    [
        (resource("a"), "a", True),
        (resource("a", 500), "a", True),
        (resource("a", 70_000), "a", False),
        (resource("n" * 200), "n" * 200, True),
        (field_bytes(2, field_text(1, "a")) + field_text(1, CLUSTER), "a", False),
        (resource("a") + field_varint(9, 1), "a", False),
        (field_text(1, "t" * 200) + field_bytes(2, field_text(1, "a")), "a", False),
        (field_text(1, CLUSTER) + field_bytes(2, b"\x0a\x05a"), "", True),
        (field_text(1, CLUSTER) + field_bytes(2, b"\x0a\x01\xff"), "", True),
        (field_text(1, CLUSTER) + field_bytes(2, field_varint(3, 1) + field_text(1, "a")), "a", True),
        (field_text(1, CLUSTER), "", False),
        (field_text(1, CLUSTER) + b"\x12", "", False),
        (b"\x0a", "", False),
        (b"", "", False),
    ],
)
def test_names_are_found_by_the_shortcut_and_without(data: bytes, name: str, is_usual: bool) -> None:
    framed = b"before" + data + b"\x0a\x7fafter"
    assert name_at(framed, 6, 6 + len(data)) == name
    assert bool(value_at(framed, 6, 6 + len(data))) is is_usual
