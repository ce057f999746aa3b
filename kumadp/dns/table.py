"""Names and their addresses, as answers that are written but for the number and the question."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, NamedTuple

from kumadp.dns.message import AAAA, IN, A, parents, wire_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A pointer to the name of the question, which every answer has at the same place (RFC 1035 4.1.4).
_TO_QUESTION = b"\xc0\x0c"
_RECORD = struct.Struct("!HHIH")
_MOST_RECORDS = 2000
"""So many AAAA records fit into the 64 KiB of a message."""


class Records(NamedTuple):
    """The records of one type: each has ``size`` bytes; ``counts`` is the header after the flags, without OPT."""

    counts: bytes
    wire: bytes
    number: int
    size: int


class Addresses(NamedTuple):
    """What is known of a name, by type."""

    a: Records
    aaaa: Records


def _records(kind: int, size: int, ttl: int, addresses: Iterable[bytes]) -> Records:
    head = _TO_QUESTION + _RECORD.pack(kind, IN, ttl, size)
    wire = [head + address for address in addresses][:_MOST_RECORDS]
    return Records(struct.pack("!HHHH", 1, len(wire), 0, 0), b"".join(wire), len(wire), len(head) + size)


NOTHING = _records(A, 4, 0, ())


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
        ttl = min(max(ttl, 0), 0x7FFFFFFF)
        for text, addresses in records:
            try:
                name = wire_name(text)
                four, six = _by_family(addresses)
            except ValueError:
                self.wrong.append(text)
                continue
            self.names[name] = Addresses(
                _records(A, 4, ttl, four) if four else NOTHING, _records(AAAA, 16, ttl, six) if six else NOTHING
            )
        # A name that has others below it is there, with nothing of its own (RFC 8020).
        self.empty = {above for name in self.names for above in parents(name)[1:]} - self.names.keys()

    def is_ours(self, name: bytes) -> bool:
        """Whether nobody else is to be asked for it."""
        return not self.suffixes.isdisjoint(parents(name))

    def __len__(self) -> int:
        return len(self.names)


def _by_family(addresses: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    parsed = [ipaddress.ip_address(text) for text in dict.fromkeys(addresses)]
    four = [address.packed for address in parsed if address.version == 4]
    return four, [address.packed for address in parsed if address.version == 6]
