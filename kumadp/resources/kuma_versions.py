"""Versions of Kuma whose rules for resources are known.

Each rule was seen with a real control plane: 2.8.8, 2.13.5, 2.14.3, and 3.0 as its development snapshot of 2026-08-21
(``tests/data/dataplanes/verdicts.json``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ALL = ("2.8", "2.13", "2.14", "3.0")
Versions = frozenset[str]
EVERY = frozenset(ALL)
KUMA_2 = frozenset({"2.8", "2.13", "2.14"})
KUMA_3 = frozenset({"3.0"})
ONLY_2_8 = frozenset({"2.8"})
BEFORE_2_14 = frozenset({"2.8", "2.13"})
SINCE_2_13 = EVERY - ONLY_2_8
SINCE_2_14 = EVERY - BEFORE_2_14


def listed(versions: Iterable[str]) -> str:
    """Return the versions as text: ``Kuma 2.8, 2.13 and 2.14``."""
    *first, last = [version for version in ALL if version in set(versions)]
    return f"Kuma {', '.join(first)} and {last}" if first else f"Kuma {last}"
