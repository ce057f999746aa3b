"""What the embedded resolver did since it started; plain numbers, told by others as metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """``quick_a`` and ``quick_aaaa``: plain answers from the table, all of them NOERROR, in no other figure here."""

    quick_a: int = 0
    quick_aaaa: int = 0
    quick_seconds: float = 0.0
    """What reading and answering took, of all queries by UDP."""
    local: Counter[int] = field(default_factory=Counter)
    """Other answers of our own, by the type that was asked for."""
    upstream: Counter[int] = field(default_factory=Counter)
    """Queries that others were asked for, by type."""
    codes: Counter[int] = field(default_factory=Counter)
    """Answers, ours and others', by code."""
    asked: int = 0
    """Questions to others, and `failed` of them without a usable answer."""
    failed: int = 0
    asked_seconds: float = 0.0
    """What all of those took."""
    refused: int = 0
    """Not asked, as too much was under way."""
    loops: int = 0
    """Queries of our own that came back to us."""
    dropped: int = 0
    """What was no query, or an answer that could not be sent."""

    @property
    def queries(self) -> int:
        """All that were answered."""
        return self.quick_a + self.quick_aaaa + self.codes.total()
