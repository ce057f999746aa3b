"""The relay's memory of each resource type, as it is handed over at a re-execution or written to disk."""

from __future__ import annotations

import msgspec


class TypeSnapshot(msgspec.Struct, frozen=True):
    """One type: names asked of the control plane (none: all there are), raw responses, digests of contents.

    ``latest`` is None when it is the accepted one. ``rejected`` were refused by an Envoy, ``deadly`` and ``suspected``
    ended one twice and once.
    """

    type_url: str
    names: tuple[str, ...] = ()
    accepted: bytes | None = None
    latest: bytes | None = None
    rejected: tuple[bytes, ...] = ()
    deadly: tuple[bytes, ...] = ()
    suspected: tuple[bytes, ...] = ()


class RelaySnapshot(msgspec.Struct, frozen=True):
    """All types, in the order in which Envoy first asked for them."""

    types: tuple[TypeSnapshot, ...] = ()
