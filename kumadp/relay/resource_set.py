"""All resources of one type by name, within the bytes of one DiscoveryResponse."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from kumadp.relay.delta_messages import MOST_RESOURCES, DeltaResource, version_of
from kumadp.relay.messages import Outline, Response
from kumadp.relay.protobuf import BadMessage, field_text, fields, text, varint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# Hexadecimal digits of the version of a set.
DIGITS = 16
_RESOURCE = b"\x12"


class Place(NamedTuple):
    """Where a resource's google.protobuf.Any is in the message, and its version."""

    start: int
    end: int
    version: str


class ResourceSet:
    """Resources of one type, unchangeable. They are not copied: ``raw``, the whole message, is what Envoys get too."""

    def __init__(self, raw: bytes = b"", places: Mapping[str, Place] | None = None) -> None:
        self._raw = raw
        self._places = dict(places or {})

    @classmethod
    def parse(cls, raw: bytes) -> ResourceSet:
        """Read a DiscoveryResponse. The name is field 1 of each type that xDS has. Raises BadMessage."""
        places = {}
        for number, start, end in fields(raw):
            if number == 2:
                places[_name(raw, start, end)] = Place(start, end, version_of(raw, start, end))
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
        return ResourceSet(self._raw, {name: place for name, place in self._places.items() if name in names})

    def with_changes(
        self, outline: Outline, resources: Mapping[str, DeltaResource], removed: Collection[str], *, largest: int
    ) -> tuple[ResourceSet, Response]:
        """Return the set with ``resources`` and without ``removed``, and the response of all, of this type.

        Its version is a digest of the set: equal sets have equal versions. Raises BadMessage if it has more than
        ``largest`` bytes, or too many resources.
        """
        view = memoryview(self._raw)
        merged = {
            name: DeltaResource(view[place.start : place.end], place.version)
            for name, place in self._places.items()
            if name not in removed
        }
        merged.update(resources)
        size = sum(len(resource.data) + 6 for resource in merged.values())
        if size > largest or len(merged) > MOST_RESOURCES:
            limit = f"at most {largest} are accepted with this memory limit"
            raise BadMessage(f"all {len(merged)} resources have {size} bytes; {limit}")
        version = set_version(resource.version for resource in merged.values())
        parts: list[bytes | memoryview] = [field_text(1, version)]
        at, places = len(parts[0]), {}
        for name, resource in merged.items():
            head = _RESOURCE + varint(len(resource.data))
            start = at + len(head)
            at = start + len(resource.data)
            places[name] = Place(start, at, resource.version)
            parts += (head, resource.data)
        parts += (field_text(4, outline.type_url), field_text(5, outline.nonce))
        raw = b"".join(parts)
        return ResourceSet(raw, places), Response(outline.type_url, version, outline.nonce, raw)


def set_version(versions: Iterable[str]) -> str:
    """Return the version of a set of resources with these versions, whatever their order."""
    return hashlib.sha256("".join(sorted(versions)).encode()).hexdigest()[:DIGITS]


def _name(raw: bytes, start: int, end: int) -> str:
    for number, inner, inner_end in fields(raw, start, end):
        if number == 2:
            for number_inside, first, last in fields(raw, inner, inner_end):
                if number_inside == 1:
                    return text(raw, first, last)
    raise BadMessage("a resource has no name")
