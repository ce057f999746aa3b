"""Names and their addresses, as encoded answers without the number and the question."""

from __future__ import annotations

import asyncio
import functools
import itertools
import struct
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

import msgspec

from kumadp.dns.message import AAAA, IN, A, parents, wire_name
from kumadp.resources.dns_defaults import DEFAULT_TTL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Addresses = tuple[bytes, bytes, bytes, bytes]
"""For A, then for AAAA: the counts of a header without OPT, and the records.

Python's garbage collector does not track tuples of bytes, however many there are.
"""

# A pointer to the name of the question, which is at the same offset in every answer (RFC 1035 4.1.4).
_TO_QUESTION = b"\xc0\x0c"
_RECORD = struct.Struct("!HHIH")
A_SIZE, AAAA_SIZE = 16, 28
"""Size of a record in bytes."""
_MOST_RECORDS = 2000
"""AAAA records that fit into the 64 KiB of a message."""
# Names at a time, which take a few milliseconds.
_STEP = 200


class HandedTable(msgspec.Struct, frozen=True):
    """A table for the next program; that one has its own suffixes."""

    names: dict[bytes, Addresses]
    empty: set[bytes]
    ttl: int
    filtered: bool


class HandedNames(msgspec.Struct, frozen=True):
    """Names for the next program, so that it answers at once; ``labels`` are the control plane's, for metrics."""

    table: HandedTable
    labels: dict[str, str] | None = None


class Table:
    """Addresses by name, in wire form and lower case. ``names`` is read-only; a change is another table.

    Names below ``suffixes`` are in the mesh: if they are not in the table they do not exist, and no name server is
    queried. ``filtered``: Envoy's DNS filter may have more names, and is queried first. ``ttl`` is in seconds.
    """

    def __init__(
        self,
        records: Iterable[tuple[str, Sequence[str]]] = (),
        *,
        ttl: int = DEFAULT_TTL,
        suffixes: Sequence[str] = (),
        filtered: bool = False,
    ) -> None:
        self.filtered = filtered
        self.suffixes = frozenset(wire_name(suffix) for suffix in suffixes)
        self.wrong: list[str] = []
        """Names that could not be encoded, or whose addresses are malformed."""
        self.names: dict[bytes, Addresses] = {}
        self.cache: dict[bytes, bytes] = {}
        """Answers by query, both without their numbers."""
        self.empty: set[bytes] = set()
        """Names without addresses that have other names below them: they exist (RFC 8020)."""
        self._ttl = min(max(ttl, 0), 0x7FFFFFFF)
        self._heads = [
            _TO_QUESTION + _RECORD.pack(kind, IN, self._ttl, size - len(_TO_QUESTION) - _RECORD.size)
            for kind, size in ((A, A_SIZE), (AAAA, AAAA_SIZE))
        ]
        self._add(records)

    async def fill(self, records: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Add many records before the table is used; other tasks run in between.

        Not in a thread, which would compete with the loop for the interpreter, 5 ms at a time, for each query.
        """
        rest = iter(records)
        while step := list(itertools.islice(rest, _STEP)):
            self._add(step)
            await asyncio.sleep(0)

    async def clear(self) -> None:
        """Remove all names once the table is no longer used; other tasks run in between."""
        self.cache.clear()
        while self.names or self.empty:
            for _ in range(min(_STEP, len(self.names))):
                self.names.popitem()
            for _ in range(min(_STEP, len(self.empty))):
                self.empty.pop()
            await asyncio.sleep(0)

    def handed(self) -> HandedTable:
        """Return the table for the next program."""
        return HandedTable(self.names, self.empty, self._ttl, self.filtered)

    @classmethod
    def of(cls, handed: HandedTable, suffixes: Sequence[str]) -> Table:
        """Build a table from the one of the previous program."""
        table = cls(ttl=handed.ttl, suffixes=suffixes, filtered=handed.filtered)
        table.names, table.empty = handed.names, handed.empty
        return table

    def is_in_mesh(self, name: bytes) -> bool:
        """Return whether the name is below one of the suffixes."""
        return not self.suffixes.isdisjoint(parents(name))

    def __len__(self) -> int:
        return len(self.names)

    def _add(self, records: Iterable[tuple[str, Sequence[str]]]) -> None:
        names, empty = self.names, self.empty
        for text, addresses in records:
            try:
                name = wire_name(text)
                encoded = self._addresses(addresses)
            except (ValueError, OSError):
                self.wrong.append(text)
                continue
            names[name] = encoded
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
