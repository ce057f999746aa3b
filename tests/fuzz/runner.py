"""Runs a target with mutated inputs, keeps those that reach new lines, and reduces an input that fails."""

from __future__ import annotations

import random
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.fuzz.mutation import Mutator
from tests.fuzz.work import Lines, TooLong, allocated, ended_after

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.target import Target

# A parser takes milliseconds; what takes so much processor time (seconds) does not end.
_LONGEST = 30.0
_MOST_ATTEMPTS = 3000
# Of the inputs one in so many is measured, which takes ten times as long.
MEASURED = 16
_MOST_KEPT = 4000
# So many of the inputs of a target with a structure are changed by that.
_STRUCTURED = 0.5


class Found(AssertionError):
    """An input that a parser does not take as documented; ``data`` is the smallest found."""

    def __init__(self, target: Target, data: bytes, why: str) -> None:
        super().__init__(f"{target.name}: {why}\ninput of {len(data)} bytes: {data!r}")
        self.data = data
        self.why = why


@dataclass
class Outcome:
    """What a run did: inputs, those refused, those measured, lines reached, and the largest cost by its bound."""

    inputs: int = 0
    refused: int = 0
    measured: int = 0
    kept: int = 0
    reached: int = 0
    lines: float = 0.0
    memory: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0
        return (
            f"{self.inputs:,} inputs ({self.refused:,} refused, {self.measured:,} measured), {self.reached} lines, "
            f"{self.kept} kept, work {self.lines:.0%} and memory {self.memory:.0%} of the bound, {rate:,.0f}/s"
        )


class Runner:
    """Runs one target; ``measured``: one input in so many is measured."""

    def __init__(self, target: Target, *, seed: int = 0, measured: int = MEASURED) -> None:
        self.target = target
        self.outcome = Outcome()
        self._lines = Lines()
        self._measured = measured
        self._is_refused = False
        self._random = random.Random(f"{target.name} {seed}")
        self._mutator = Mutator(self._random, target.words, target.largest)
        self._kept = [bytes(seed) for seed in target.seeds()]

    def run(self, *, inputs: int = sys.maxsize, seconds: float = float("inf")) -> Outcome:
        """Run so many inputs, or for so long; raises Found with a small input."""
        began = time.monotonic()
        with ended_after(_LONGEST) as begin:
            for seed in self._kept.copy():
                begin()
                self.check(seed)
                self.measure(seed)
            while self.outcome.inputs < inputs and time.monotonic() - began < seconds:
                begin()
                data, self._is_refused = self._next(), False
                if self.outcome.inputs % self._measured == 0:
                    if self.measure(data) and len(data) <= self.target.largest and len(self._kept) < _MOST_KEPT:
                        self._kept.append(data)
                else:
                    self.check(data)
                self.outcome.inputs += 1
                self.outcome.refused += self._is_refused
        self.outcome.seconds = time.monotonic() - began
        self.outcome.kept, self.outcome.reached = len(self._kept), len(self._lines.seen)
        return self.outcome

    def _next(self) -> bytes:
        structure = self.target.structure
        if structure is not None and self._random.random() < _STRUCTURED:
            data = structure(self._random, self._kept)
            if data is not None and len(data) <= 4 * self.target.largest:
                return data
        return self._mutator.mutated(self._kept)

    def check(self, data: bytes) -> None:
        """Run one input without a count: what is imported or kept for the first of its kind is not of that input."""
        self._check(data, self._parse)

    def measure(self, data: bytes) -> bool:
        """Run one input and count what it costs; returns whether it reached a new line. Raises Found."""
        is_new = self._check(data, lambda data: self._lines.run(lambda: self._parse(data)))
        self._compare(data, self._count_lines, self.target.lines_of, "lines of Python")
        self.outcome.lines = max(self.outcome.lines, self._lines.count / self.target.lines_of(len(data)))
        used = self._count_memory(data)
        if used > self.target.memory_of(len(data)):
            # The first input of its kind fills what is kept: tables, compiled expressions.
            self._compare(data, self._count_memory, self.target.memory_of, "bytes")
        else:
            self.outcome.memory = max(self.outcome.memory, used / self.target.memory_of(len(data)))
        self.outcome.measured += 1
        return bool(is_new)

    def _parse(self, data: bytes) -> None:
        try:
            self.target.parse(data)
        except self.target.refusals:
            self._is_refused = True

    def _count_lines(self, data: bytes) -> float:
        if self._lines.count > self.target.lines_of(len(data)):
            self._lines.run(lambda: self._parse(data))
        return self._lines.count

    def _count_memory(self, data: bytes) -> float:
        return allocated(lambda: self._parse(data))

    def _compare(self, data: bytes, count: Callable[[bytes], float], bound: Callable[[int], float], what: str) -> None:
        if (counted := count(data)) > bound(len(data)):
            raise Found(self.target, data, f"{counted:.0f} {what}, more than {bound(len(data)):.0f}")

    def _check(self, data: bytes, run: Callable[[bytes], object]) -> object:
        try:
            return run(data)
        except (Exception, TooLong) as error:
            place = _place(error)
            small = data if isinstance(error, TooLong) else reduced(data, lambda part: self._fails(part) == place)
            raise Found(self.target, small, "".join(traceback.format_exception(error)[-6:])) from None

    def _fails(self, data: bytes) -> object:
        try:
            self._parse(data)
        except Exception as error:
            return _place(error)
        return None


def _place(error: BaseException) -> tuple[type, str, int]:
    """Return what distinguishes a fault from others: its type, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return type(error), last.filename if last else "", (last.lineno or 0) if last else 0


def reduced(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Return a smaller input that fails in the same way: parts are removed as long as it does."""
    attempts = 0
    size = max(1, len(data) // 2)
    while size and attempts < _MOST_ATTEMPTS:
        at, removed = 0, False
        while at < len(data) and attempts < _MOST_ATTEMPTS:
            part = data[:at] + data[at + size :]
            attempts += 1
            if fails(part):
                data, removed = part, True
            else:
                at += size
        if not removed or size > len(data):
            size //= 2
    return data
