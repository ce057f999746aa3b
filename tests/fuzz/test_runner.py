"""The runner finds what it is for, repeats itself, and reduces what it found."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from kumadp.relay.protobuf import field_bytes, fields
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Found, Runner, reduced
from tests.fuzz.structure import json_trees, messages, msgpack_trees
from tests.fuzz.target import Target
from tests.fuzz.work import Lines, TooLong, allocated, ended_after


def target(parse: object, *seeds: bytes, **options: object) -> Target:
    return Target("toy", parse, lambda: seeds or (b"a seed",), **options)  # type: ignore[arg-type]


def test_an_error_that_is_not_documented_is_found_and_reduced() -> None:
    def parse(data: bytes) -> None:
        if b"(" in data:
            raise LookupError("a bug")
        if b"x" in data:
            raise ValueError("documented")

    with pytest.raises(Found) as found:
        Runner(target(parse, words=(b"(",), refusals=(ValueError,))).run(inputs=2000)
    assert found.value.data == b"("
    assert "a bug" in found.value.why
    outcome = Runner(target(parse, b"x", refusals=(LookupError, ValueError))).run(inputs=500)
    assert 0 < outcome.refused < outcome.inputs == 500


def test_too_many_lines_and_too_many_bytes_are_found() -> None:
    def quadratic(data: bytes) -> None:
        for _ in data:
            for _ in data:
                pass

    with pytest.raises(Found, match="lines of Python"):
        Runner(target(quadratic, largest=1000), measured=1).run(inputs=3000)

    def large(data: bytes) -> bytes:
        return data * 1000

    with pytest.raises(Found, match="bytes, more than"):
        Runner(target(large), measured=1).run(inputs=1000)


def test_what_does_not_end_is_found() -> None:
    def endless() -> None:
        while True:
            pass

    with ended_after(0.05) as begin:
        begin()
        with pytest.raises(TooLong):
            endless()


def test_the_same_seed_gives_the_same_inputs() -> None:
    def seen(seed: int) -> list[bytes]:
        inputs: list[bytes] = []
        Runner(target(inputs.append), seed=seed).run(inputs=50)
        return inputs

    assert seen(1) == seen(1) != seen(2)


def test_inputs_that_reach_new_lines_are_mutated_further() -> None:
    def parse(data: bytes) -> None:
        if data[:1] == b"a":
            if data[1:2] == b"b":
                if data[2:3] == b"c":
                    raise LookupError("deep")
                return
            return

    with pytest.raises(Found, match="deep"):
        Runner(target(parse, b"zzz", words=(b"a", b"b", b"c")), measured=1).run(inputs=20_000)


def test_an_input_is_reduced_to_what_fails() -> None:
    assert reduced(b"1234(5678)90" * 20, lambda data: b"(" in data and b")" in data) == b"()"


def test_work_is_counted() -> None:
    lines = Lines()
    assert lines.run(lambda: sum(number for number in range(10)))
    first = lines.count
    assert not lines.run(lambda: None) or lines.count < first
    assert allocated(lambda: bytes(100_000)) > 100_000
    assert allocated(lambda: None) < 10_000


def test_mutations_stay_within_the_size_and_change_something() -> None:
    choose = random.Random(1)
    mutator = Mutator(choose, (b"word",), 50)
    made = {mutator.mutated([b"one seed", b"another one"]) for _ in range(300)}
    assert len(made) > 200
    assert max(map(len, made)) <= 50
    assert any(b"word" in data for data in made)
    assert mutator.mutated([b""]) is not None


def test_structured_mutations_are_well_formed() -> None:
    choose = random.Random(1)
    tree = {"a": [1, {"portValue": 2}], "b": "c", "d": {"e": None}}
    encoded = json.dumps(tree).encode()
    made = {json_trees(choose, [encoded]) for _ in range(300)} - {None}
    assert len(made) > 100
    for data in made:
        assert data is not None
        json.loads(data)
    packed = msgspec.msgpack.encode(tree)
    others = {msgpack_trees(choose, [packed]) for _ in range(300)} - {None}
    assert len(others) > 100
    for data in others:
        assert data is not None
        msgspec.msgpack.decode(data)
    message = field_bytes(1, b"name") + field_bytes(2, field_bytes(3, b"inner")) + field_bytes(5, b"")
    changed = {messages(choose, [message]) for _ in range(300)} - {None}
    assert len(changed) > 100
    for data in changed:
        assert data is not None
        list(fields(data))
    assert json_trees(choose, [b"no tree"]) is None
    assert messages(choose, [b"\xff"]) is None
