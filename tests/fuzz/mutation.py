"""Mutations of inputs, chosen by a generator with a fixed seed: the same seed gives the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

# Values at which lengths, counts and numbers are compared.
_BYTES = (0x00, 0x01, 0x0A, 0x0D, 0x20, 0x22, 0x2E, 0x3F, 0x40, 0x5C, 0x7F, 0x80, 0xC0, 0xFF)
_NUMBERS = (
    b"0", b"-1", b"1", b"255", b"256", b"65535", b"65536", b"2147483648", b"4294967295", b"18446744073709551616",
    b"1e309", b"-0", b"0x10", b"1_0", b"NaN", b"\xd9\xa3",
)  # fmt: skip
_SPECIAL = (b"", b"\r\n", b"\n", b"\0", b" ", b"\xef\xbb\xbf", b"\xff", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80")
_MOST_AT_ONCE = 6


class Mutator:
    """Makes an input of others: ``words`` are texts of the format, ``largest`` the size in bytes."""

    def __init__(self, random: random.Random, words: Sequence[bytes], largest: int) -> None:
        self._random = random
        self._words = (*words, *_SPECIAL, *_NUMBERS)
        self._largest = largest
        self._changes: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._set,
            self._insert_word,
            self._insert_word,
            self._replace_by_word,
            self._remove,
            self._repeat,
            self._move,
            self._number,
            self._cut,
        )

    def mutated(self, inputs: Sequence[bytes]) -> bytes:
        """Return one of the inputs with one to six changes, or a beginning of one with an end of another one."""
        choose = self._random
        data = bytearray(choose.choice(inputs))
        if choose.random() < 0.1:
            other = choose.choice(inputs)
            data[self._at(data) :] = other[choose.randint(0, len(other)) :]
        for _ in range(1 + int(choose.expovariate(0.7))):
            choose.choice(self._changes)(data)
        return bytes(data[: self._largest])

    def _at(self, data: bytearray) -> int:
        return self._random.randint(0, len(data))

    def _span(self, data: bytearray) -> tuple[int, int]:
        start = self._at(data)
        return start, min(len(data), start + int(self._random.expovariate(0.1)) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] = self._random.choice(_BYTES)

    def _insert_word(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.choice(self._words)

    def _replace_by_word(self, data: bytearray) -> None:
        start, end = self._span(data)
        data[start:end] = self._random.choice(self._words)

    def _remove(self, data: bytearray) -> None:
        start, end = self._span(data)
        del data[start:end]

    def _repeat(self, data: bytearray) -> None:
        start, end = self._span(data)
        times = min(1 << self._random.randrange(10), 1 + self._largest // (end - start + 1))
        data[end:end] = data[start:end] * times

    def _move(self, data: bytearray) -> None:
        start, end = self._span(data)
        part = data[start:end]
        at = self._at(data)
        data[at:at] = part

    def _number(self, data: bytearray) -> None:
        digits = [at for at, letter in enumerate(data[:512]) if 0x30 <= letter <= 0x39]
        if digits:
            at = self._random.choice(digits)
            data[at : at + 1] = self._random.choice(_NUMBERS)

    def _cut(self, data: bytearray) -> None:
        del data[self._at(data) :]
