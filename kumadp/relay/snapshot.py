"""The relay's memory of each resource type, as it is handed over at a re-execution or written to disk."""

from __future__ import annotations

import msgspec

from kumadp.relay.verdicts import RejectedResource  # noqa: TC001 - msgspec reads the annotations


class TypeSnapshot(msgspec.Struct, frozen=True):
    """One type: names requested from the control plane (none: all), raw responses, digests of contents.

    ``latest`` is None if it is the accepted one. An Envoy ``rejected`` the contents of these digests (only
    read: an earlier kumadp had no verdicts on resources), or exited with them: twice (``deadly``) or once
    (``suspected``). ``withheld`` resources were rejected, ``held`` ones are removed and still with Envoy, ``versions``
    are those that Envoys were sent, ``unanswered`` resources (without a reason) those that Envoys have not answered.
    """

    type_url: str
    names: tuple[str, ...] = ()
    accepted: bytes | None = None
    latest: bytes | None = None
    rejected: tuple[bytes, ...] = ()
    deadly: tuple[bytes, ...] = ()
    suspected: tuple[bytes, ...] = ()
    withheld: tuple[RejectedResource, ...] = ()
    held: tuple[bytes, ...] = ()
    versions: tuple[str, ...] = ()
    unanswered: tuple[RejectedResource, ...] = ()


class KeptSockets(msgspec.Struct, frozen=True):
    """Sockets of a listener in the Envoy that runs, which the accepted response has otherwise."""

    name: str
    reuse_port: bool
    bound: bool


class RelaySnapshot(msgspec.Struct, frozen=True):
    """All types, in the order in which Envoy first requested them. ``sockets``: see `KeptSockets`."""

    types: tuple[TypeSnapshot, ...] = ()
    sockets: tuple[KeptSockets, ...] = ()
