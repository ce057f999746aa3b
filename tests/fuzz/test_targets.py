"""Each target with its real inputs, with mutated ones, and with those of its grammar; a minute each in `make fuzz`."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.catalogue import TARGETS
from tests.fuzz.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of each target in `make test`. The same ones each time: they are as old as the code that they have passed.
INPUTS, EXAMPLES = 250, 40
SECONDS = float(os.environ.get("KUMADP_FUZZ_SECONDS", "60"))
GENERATED = [name for name, target in TARGETS.items() if target.grammar is not None]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Log lines of millions of inputs would be kept for the report of a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs(name: str) -> None:
    inputs = _share(name, INPUTS)
    outcome = Runner(TARGETS[name]).run(inputs=inputs)
    # One that refuses all, or takes all at once, is fed with the wrong inputs.
    assert outcome.inputs == inputs
    assert outcome.refused < inputs


@pytest.mark.parametrize("name", GENERATED)
def test_generated_inputs(name: str) -> None:
    _generate(name, _share(name, EXAMPLES))


def _share(name: str, count: int) -> int:
    return count // 5 if TARGETS[name].slow else count


def _generate(name: str, examples: int) -> None:
    target = TARGETS[name]
    assert target.grammar is not None
    runner = Runner(target)

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.grammar())
    def every(data: bytes) -> None:
        runner.check(data)
        if len(data) <= 4 * target.largest:
            runner.measure(data)

    every()


@pytest.mark.fuzz
@pytest.mark.timeout(2 * SECONDS + 120)
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_for_a_minute(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int.from_bytes(os.urandom(4))
    with capsys.disabled():
        outcome = Runner(TARGETS[name], seed=seed, measured=32).run(seconds=SECONDS)
        logging.disable(logging.NOTSET)
        os.write(1, f"\n{name}, seed {seed}: {outcome}\n".encode())
    assert outcome.inputs


@pytest.mark.fuzz
@pytest.mark.timeout(2 * SECONDS + 300)
@pytest.mark.parametrize("name", GENERATED)
def test_more_generated_inputs(name: str) -> None:
    _generate(name, max(int(SECONDS * 20), 20))
