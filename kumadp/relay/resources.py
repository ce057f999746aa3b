"""The resources of a response: names, digests and bytes, which stay opaque."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from kumadp.relay.protobuf import BadMessage, fields, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Key = tuple[str, bytes]
"""Name and digest of a resource."""

# Of a KRI, ``kri_<type>_<mesh>_<zone>_<namespace>_<name>_<section>``; policies are written into routes and metadata.
_KRI = re.compile(rb"kri_[a-z]{2,16}(?:_[A-Za-z0-9.-]{0,253}){5}")
# Short names of what a KRI can name besides policies (Kuma 2.14 and 3.0).
_NO_POLICIES = (b"kri_dp_", b"kri_mesh_", b"kri_zi_", b"kri_ze_", b"kri_msvc_", b"kri_mzsvc_", b"kri_extsvc_")
_MOST_SCANNED = 1 << 20
# Tags of strings and messages; the bit of a length that has another byte.
_FIELD_1, _FIELD_2, _MORE = 0x0A, 0x12, 0x80


class XdsResource(Struct, frozen=True, eq=False, gc=False):
    """One google.protobuf.Any of a message. ``digest`` is the SHA-256 of its bytes, ``name`` empty if it has none."""

    name: str
    digest: bytes
    source: bytes
    start: int
    end: int

    @property
    def key(self) -> Key:
        """Name and digest."""
        return self.name, self.digest

    @property
    def raw(self) -> memoryview:
        """Its bytes, without a copy."""
        return memoryview(self.source)[self.start : self.end]


class Place(NamedTuple):
    """Where a resource is in a message: its field from ``field`` on, its google.protobuf.Any from ``start`` to ``end``.

    ``version`` as Kuma computes it; ``digest`` as in `XdsResource`.
    """

    field: int
    start: int
    end: int
    version: str
    digest: bytes


def read_resources(
    message: bytes, spans: Iterable[tuple[int, int]], former: Mapping[str, XdsResource]
) -> Iterator[XdsResource]:
    """Yield the resources at these places. Digests of those that are the same in ``former`` are not computed again."""
    for start, end in spans:
        name = name_at(message, start, end)
        raw, old = message[start:end], former.get(name)
        if old is not None and raw == old.source[old.start : old.end]:
            yield XdsResource(old.name, old.digest, message, start, end)
        else:
            yield XdsResource(name, hashlib.sha256(raw).digest(), message, start, end)


def by_name(resources: Iterable[XdsResource]) -> dict[str, XdsResource]:
    """Return resources by name; one without a name, or with the name of another one, by its digest."""
    named: dict[str, XdsResource] = {}
    for resource in resources:
        name = resource.name if resource.name and resource.name not in named else resource.digest.hex()
        named[name] = resource
    return named


def digest_of(resources: Iterable[XdsResource]) -> bytes:
    """Return a digest of a set of resources, whatever their order."""
    return hashlib.sha256(b"".join(sorted({resource.digest for resource in resources}))).digest()


def endpoint_name(cluster: XdsResource) -> str:
    """Return the name by which Envoy requests the endpoints of a cluster, empty if it does not.

    Cluster.eds_cluster_config, and its service_name.
    """
    try:
        for number, start, end in fields(cluster.source, cluster.start, cluster.end):
            if number == 2:
                for inner, first, last in fields(cluster.source, start, end):
                    if inner == 3:
                        return _text_of(cluster.source, first, last, 2) or cluster.name
    except BadMessage:
        pass
    return ""


def policies(resource: XdsResource) -> tuple[str, ...]:
    """Return the KRIs of policies that a resource mentions, at most eight: one of them may have caused its content."""
    raw = bytes(resource.raw[:_MOST_SCANNED])
    kris = dict.fromkeys(kri for kri in _KRI.findall(raw) if not kri.startswith(_NO_POLICIES))
    return tuple(kri.decode() for kri in list(kris)[:8])


def changed_names(before: Mapping[str, XdsResource], after: Mapping[str, XdsResource]) -> list[str]:
    """Return the names in ``after`` whose resource is new or another one."""
    return [name for name, new in after.items() if (old := before.get(name)) is None or old.digest != new.digest]


def name_at(message: bytes, start: int, end: int) -> str:
    """Return field 1 of the resource, its name in every type that Envoy requests; empty if it has none."""
    try:
        first = value_at(message, start, end)
        if first and first + 2 <= end and message[first] == _FIELD_1 and message[first + 1] < _MORE:
            last = first + 2 + message[first + 1]
            if last <= end:
                return text(message, first + 2, last)
        for number, first, last in fields(message, start, end):
            if number == 2:
                return _text_of(message, first, last, 1)
    except BadMessage:
        pass
    return ""


def value_at(message: bytes, start: int, end: int) -> int:
    """Return where the value of a resource begins if it ends at ``end``; 0 if it is encoded in an unusual way.

    A shortcut: every encoder writes a short type and then the value, and generators cost 3 ms for 1,000 resources.
    """
    if start + 2 > end or message[start] != _FIELD_1 or message[start + 1] >= _MORE:
        return 0
    at = start + 2 + message[start + 1]
    if at + 3 > end or message[at] != _FIELD_2:
        return 0
    size, more = message[at + 1], message[at + 2]
    at += 2
    if size >= _MORE:
        if more >= _MORE:
            return 0
        size, at = size & 0x7F | more << 7, at + 1
    return at if at + size == end else 0


def _text_of(message: bytes, start: int, end: int, number: int) -> str:
    return next(
        (text(message, first, last) for field, first, last in fields(message, start, end) if field == number), ""
    )
