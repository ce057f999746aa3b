"""Texts of the log and the status that come from peers."""

from __future__ import annotations

# Characters of a control plane's error text that are kept.
LONGEST_REASON = 500


def short_name(type_url: str) -> str:
    """Return a type as people know it, e.g. ``Cluster``."""
    return type_url.rpartition(".")[2]


def one_line(text: str) -> str:
    """Return the beginning of a peer's text as one line."""
    return " ".join(text[: 2 * LONGEST_REASON].split())[:LONGEST_REASON]
