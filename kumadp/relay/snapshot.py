"""The relay's memory of each resource type, as it is handed over at a re-execution or written to disk."""

from __future__ import annotations

import msgspec


class TypeSnapshot(msgspec.Struct, frozen=True):
    """One type: names requested from the control plane (none: all), raw responses, digests of contents.

    ``latest`` is None if it is the accepted one. An Envoy ``rejected`` the contents of these digests, or exited with
    them: twice (``deadly``) or once (``suspected``).
    """

    type_url: str
    names: tuple[str, ...] = ()
    accepted: bytes | None = None
    latest: bytes | None = None
    rejected: tuple[bytes, ...] = ()
    deadly: tuple[bytes, ...] = ()
    suspected: tuple[bytes, ...] = ()


class RelaySnapshot(msgspec.Struct, frozen=True):
    """All types, in the order in which Envoy first requested them."""

    types: tuple[TypeSnapshot, ...] = ()
