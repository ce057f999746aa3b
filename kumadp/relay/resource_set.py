"""All resources of one type by name, within the bytes of one DiscoveryResponse."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from kumadp.relay.delta_messages import MOST_RESOURCES, DeltaResource, version_of
from kumadp.relay.messages import Outline, Response
from kumadp.relay.protobuf import BadMessage, field_text, fields, varint
from kumadp.relay.resources import Place, name_at

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# Hexadecimal digits of the version of a set.
DIGITS = 16
_RESOURCE = b"\x12"


class ResourceSet:
    """Resources of one type, unchangeable. They are not copied: ``raw``, the whole message, is what Envoys get too.

    ``named``: each is under its own name.
    """

    def __init__(self, raw: bytes = b"", places: Mapping[str, Place] | None = None, *, named: bool = True) -> None:
        self._raw = raw
        self._places = dict(places or {})
        self._named = named

    @classmethod
    def parse(cls, raw: bytes) -> ResourceSet:
        """Read a DiscoveryResponse. The name is field 1 of each type that xDS has. Raises BadMessage."""
        places, view = {}, memoryview(raw)
        for number, start, end in fields(raw):
            if number == 2:
                name, head = name_at(raw, start, end), _head(end - start)
                if not name:
                    raise BadMessage("a resource has no name")
                if raw[start - len(head) : start] != head:
                    raise BadMessage("a resource's length is encoded in an unusual way")
                digest = hashlib.sha256(view[start:end]).digest()
                places[name] = Place(start - len(head), start, end, version_of(raw, start, end), digest)
        return cls(raw, places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> Collection[str]:
        """The names."""
        return self._places.keys()

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return len(self._raw)

    def versions(self) -> dict[str, str]:
        """Return the version of each resource."""
        return {name: place.version for name, place in self._places.items()}

    def differing(self, resources: Mapping[str, DeltaResource]) -> dict[str, DeltaResource]:
        """Return those that are not in this set, or with other content."""
        return {
            name: resource
            for name, resource in resources.items()
            if (place := self._places.get(name)) is None or place.version != resource.version
        }

    def only(self, names: Collection[str]) -> ResourceSet:
        """Return the set with these names alone; its message stays whole until `with_changes`."""
        places = {name: place for name, place in self._places.items() if name in names}
        return ResourceSet(self._raw, places, named=self._named)

    def with_changes(
        self, outline: Outline, resources: Mapping[str, DeltaResource], removed: Collection[str], *, largest: int
    ) -> tuple[ResourceSet, Response]:
        """Return the set with ``resources`` and without ``removed``, and the response of all, of this type.

        Its version is a digest of the set: equal sets have equal versions. Raises BadMessage if it has more than
        ``largest`` bytes, or too many resources.
        """
        versions = {name: place.version for name, place in self._places.items() if name not in removed}
        versions.update((name, resource.version) for name, resource in resources.items())
        version = set_version(versions.values())
        parts: list[bytes | memoryview] = [field_text(1, version)]
        view, at, places = memoryview(self._raw), len(parts[0]), {}
        # Neighbours that stay are copied at once.
        first = last = 0
        for name in versions:
            resource, place = resources.get(name), self._places.get(name)
            if resource is None and place is not None:
                if place.field != last:
                    parts.append(view[first:last])
                    first = place.field
                last = place.end
                shift = at - place.field
                at = place.end + shift
                places[name] = Place(place.field + shift, place.start + shift, at, place.version, place.digest)
            elif resource is not None:
                head = _head(len(resource.data))
                parts += (view[first:last], head, resource.data)
                first = last = 0
                start = at + len(head)
                end = start + len(resource.data)
                places[name] = Place(at, start, end, resource.version, hashlib.sha256(resource.data).digest())
                at = end
        if at > largest or len(places) > MOST_RESOURCES:
            limit = f"at most {largest} are accepted with this memory limit"
            raise BadMessage(f"all {len(places)} resources have {at} bytes; {limit}")
        parts += (view[first:last], field_text(4, outline.type_url), field_text(5, outline.nonce))
        raw = b"".join(parts)
        named = self._named and all(name_at(raw, places[name].start, places[name].end) == name for name in resources)
        response = Response(outline.type_url, version, outline.nonce, raw, places=places if named else None)
        return ResourceSet(raw, places, named=named), response


def set_version(versions: Iterable[str]) -> str:
    """Return the version of a set of resources with these versions, whatever their order."""
    return hashlib.sha256("".join(sorted(versions)).encode()).hexdigest()[:DIGITS]


def _head(size: int) -> bytes:
    """Return what comes before a resource of so many bytes."""
    return _RESOURCE + varint(size)
