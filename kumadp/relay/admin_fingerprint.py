"""Notices when the control plane changes what could lead others to Envoy's admin: the proof is repeated then."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, SECRET, BadMessage
from kumadp.relay.protobuf import fields, text, varint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.relay.snapshot import RelaySnapshot

# As they are encoded: Cluster.type ORIGINAL_DST, and the tag of Cluster.cluster_type (envoy/config/cluster/v3).
_ORIGINAL_DST = b"\x10\x04"
_CLUSTER_TYPE = b"\xb2\x02"


class Fingerprint(Struct, frozen=True):
    """What of Envoy's configuration could lead somebody to its admin: digests of each listener, and of the rest."""

    listeners: dict[str, frozenset[bytes]] = field(default_factory=dict)
    rest: frozenset[bytes] = frozenset()


def fingerprint(memory: RelaySnapshot, admin: AdminAddress) -> Fingerprint:
    """Of clusters and endpoints only those count that may be the admin or of a kind whose address is not in them.

    A mesh's clusters and endpoints change all the time, and an application must not get requests then. May be slow.
    """
    mark = b"\x18" + varint(admin.port) if isinstance(admin, TcpAdmin) else admin.path.rpartition("/")[2].encode()
    result = Fingerprint()
    rest: set[bytes] = set()
    for snapshot in memory.types:
        marks = {ENDPOINTS: (mark,), CLUSTER: (mark, _ORIGINAL_DST, _CLUSTER_TYPE)}.get(snapshot.type_url, (b"",))
        for raw in (snapshot.accepted, snapshot.latest):
            if raw is None or snapshot.type_url == SECRET:
                continue
            if not any(mark in raw for mark in marks):
                continue
            for name, resource in _resources(raw):
                if snapshot.type_url == LISTENER:
                    digest = hashlib.sha256(resource).digest()
                    result.listeners[name] = result.listeners.get(name, frozenset()) | {digest}
                elif any(each in resource for each in marks):
                    rest.add(hashlib.sha256(resource).digest())
    return Fingerprint(result.listeners, frozenset(rest))


def _resources(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and encoded resources of a response that was read once already, one at a time: it may be large."""
    for number, start, end in fields(raw):
        if number != 2:
            continue
        resource = raw[start:end]
        try:
            value = next((resource[first:last] for inner, first, last in fields(resource) if inner == 2), b"")
            name = next((text(value, first, last) for inner, first, last in fields(value) if inner == 1), "")
        except BadMessage:
            value, name = resource, ""
        yield name, value


class AdminWatch:
    """Compares fingerprints after each answer of an Envoy; calls ``doubt`` with names of listeners, or None for all."""

    def __init__(
        self,
        memory: Callable[[], RelaySnapshot],
        admin: Callable[[], AdminAddress],
        doubt: Callable[[Collection[str] | None], None],
    ) -> None:
        self._memory = memory
        self._admin = admin
        self._doubt = doubt
        self._latest = Fingerprint()
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def on_answered(self, type_url: str) -> None:
        """Envoy has accepted or rejected a response of this type."""
        if type_url != SECRET:
            self.look()

    def look(self) -> None:
        """Compare with what was there when this was last done, or with nothing."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._compare(), name="admin watch")

    async def _compare(self) -> None:
        while self._again:
            self._again = False
            latest = await asyncio.to_thread(fingerprint, self._memory(), self._admin())
            previous, self._latest = self._latest, latest
            if not latest.rest <= previous.rest:
                self._doubt(None)
            elif changed := {
                name
                for name, digests in latest.listeners.items()
                if not digests <= previous.listeners.get(name, frozenset())
            }:
                self._doubt(changed)
