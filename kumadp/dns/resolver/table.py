"""Names and their addresses, as answers that are written but for the number and the question."""

from __future__ import annotations

import asyncio
import functools
import itertools
import struct
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

import msgspec

from kumadp.dns.message import AAAA, IN, A, parents, wire_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Addresses = tuple[bytes, bytes, bytes, bytes]
"""What is known of a name: the counts of a header without OPT and the records, of its A, then of its AAAA.

A tuple of bytes is nothing that Python's collector looks at, however many there are.
"""

# A pointer to the name of the question, which every answer has at the same place (RFC 1035 4.1.4).
_TO_QUESTION = b"\xc0\x0c"
_RECORD = struct.Struct("!HHIH")
A_SIZE, AAAA_SIZE = 16, 28
"""Bytes of a record."""
_MOST_RECORDS = 2000
"""So many AAAA records fit into the 64 KiB of a message."""
# Names at a time: a few milliseconds.
_STEP = 200


class HandedTable(msgspec.Struct, frozen=True):
    """A table as it is left to another program; its suffixes are that one's own."""

    names: dict[bytes, Addresses]
    empty: set[bytes]
    ttl: int
    filtered: bool


class HandedNames(msgspec.Struct, frozen=True):
    """What is left to another program, so that it answers at once; ``labels`` are the control plane's, for metrics."""

    table: HandedTable
    labels: dict[str, str] | None = None


class Table:
    """Names by their wire form in lower case. ``names`` is for reading alone; a change is another table.

    Names below ``suffixes`` are ours: who is not in here is not there, and nobody else is asked. ``filtered``: Envoy's
    DNS filter may know more of them, and is asked first.
    """

    def __init__(
        self,
        records: Iterable[tuple[str, Sequence[str]]] = (),
        *,
        ttl: int = 30,
        suffixes: Sequence[str] = (),
        filtered: bool = False,
    ) -> None:
        self.filtered = filtered
        self.suffixes = frozenset(wire_name(suffix) for suffix in suffixes)
        self.wrong: list[str] = []
        """What was given and could not be taken."""
        self.names: dict[bytes, Addresses] = {}
        self.ready: dict[bytes, bytes] = {}
        """Queries that were answered, and the answers, both without their numbers."""
        self.empty: set[bytes] = set()
        """Those that have others below them and nothing of their own: they are there (RFC 8020)."""
        self._ttl = min(max(ttl, 0), 0x7FFFFFFF)
        self._heads = [
            _TO_QUESTION + _RECORD.pack(kind, IN, self._ttl, size - len(_TO_QUESTION) - _RECORD.size)
            for kind, size in ((A, A_SIZE), (AAAA, AAAA_SIZE))
        ]
        self._add(records)

    async def fill(self, records: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Add many before the table is used, with other things done in between.

        Not in a thread: its bytecode takes turns with the loop's, 5 ms each, for each query that comes.
        """
        rest = iter(records)
        while step := list(itertools.islice(rest, _STEP)):
            self._add(step)
            await asyncio.sleep(0)

    async def clear(self) -> None:
        """Forget all, with other things done in between, once the table is not used any more."""
        self.ready.clear()
        while self.names or self.empty:
            for _ in range(min(_STEP, len(self.names))):
                self.names.popitem()
            for _ in range(min(_STEP, len(self.empty))):
                self.empty.pop()
            await asyncio.sleep(0)

    def handed(self) -> HandedTable:
        """For the program that follows."""
        return HandedTable(self.names, self.empty, self._ttl, self.filtered)

    @classmethod
    def of(cls, handed: HandedTable, suffixes: Sequence[str]) -> Table:
        """What was left by the program before."""
        table = cls(ttl=handed.ttl, suffixes=suffixes, filtered=handed.filtered)
        table.names, table.empty = handed.names, handed.empty
        return table

    def is_ours(self, name: bytes) -> bool:
        """Whether nobody else is to be asked for it."""
        return not self.suffixes.isdisjoint(parents(name))

    def __len__(self) -> int:
        return len(self.names)

    def _add(self, records: Iterable[tuple[str, Sequence[str]]]) -> None:
        names, empty = self.names, self.empty
        for text, addresses in records:
            try:
                name = wire_name(text)
                found = self._addresses(addresses)
            except (ValueError, OSError):
                self.wrong.append(text)
                continue
            names[name] = found
            empty.discard(name)
            above = name[1 + name[0] :]
            while above[0] and above not in empty:
                if above not in names:
                    empty.add(above)
                above = above[1 + above[0] :]

    def _addresses(self, addresses: Sequence[str]) -> Addresses:
        four, six = self._heads
        a, aaaa = [], []
        for text in dict.fromkeys(addresses):
            if ":" in text:
                aaaa.append(six + inet_pton(AF_INET6, text))
            else:
                a.append(four + inet_pton(AF_INET, text))
        del a[_MOST_RECORDS:], aaaa[_MOST_RECORDS:]
        return _counts(len(a)), b"".join(a), _counts(len(aaaa)), b"".join(aaaa)


@functools.cache
def _counts(number: int) -> bytes:
    return struct.pack("!HHHH", 1, number, 0, 0)
