"""What an Envoy is given of a response: without resources that are withheld, with clusters that are held."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from kumadp.relay.messages import Response, encode_response
from kumadp.relay.resources import Key, XdsResource, digest_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Delivery:
    """One response of the control plane; ``serial`` orders responses by age, which versions do not.

    The serial numbers of responses are even; without some of its resources a response has the odd one before.
    """

    __slots__ = ("response", "serial")

    def __init__(self, serial: int, response: Response) -> None:
        self.serial = serial
        self.response = response

    def __contains__(self, key: object) -> bool:
        """Return True if it has the resource of this `Key`."""
        return isinstance(key, tuple) and self._has(*key)

    def _has(self, name: str, digest: bytes) -> bool:
        resource = self.response.by_name.get(name)
        return resource is not None and resource.digest == digest

    def same_content(self, other: Delivery) -> bool:
        """Return True if the resources are equal, in any order and version."""
        return self is other or self.response.digest == other.response.digest


class EnvoyOffer:
    """The resources of ``base`` without those ``withheld``, in whose place the accepted ones stay, and those ``held``.

    ``version`` is the control plane's if these are its resources or the accepted ones, else one of our own.
    """

    def __init__(
        self,
        base: Delivery,
        accepted: Delivery | None = None,
        withheld: Collection[Key] = (),
        held: Mapping[str, XdsResource] | None = None,
    ) -> None:
        self.base = base
        self.withheld = frozenset(key for key in withheld if key in base)
        self._same: Delivery | None = base
        kept: Mapping[str, XdsResource] = base.response.by_name
        if self.withheld:
            replacements = accepted.response.by_name if accepted is not None else {}
            kept = _without(kept, replacements, withheld)
            same = accepted is not None and digest_of(kept.values()) == accepted.response.digest
            self._same = accepted if same else None
        self._kept = kept
        self.held = {
            name: resource
            for name, resource in (held or {}).items()
            if name not in kept and resource.key not in withheld
        }
        self.resources: Mapping[str, XdsResource] = {**kept, **self.held} if self.held else kept

    def __contains__(self, key: Key) -> bool:
        resource = self.resources.get(key[0])
        return resource is not None and resource.digest == key[1]

    @cached_property
    def digest(self) -> bytes:
        """A digest of all its resources."""
        if self._same is not None and not self.held:
            return self._same.response.digest
        return digest_of(self.resources.values())

    @cached_property
    def version(self) -> str:
        """The version that Envoy sees."""
        if self._same is not None and not self.held:
            return self._same.response.version
        return f"{self.base.response.version}+{self.digest.hex()[:8]}"

    def has_content_of(self, delivery: Delivery) -> bool:
        """Return True if its resources, without those held, are those of a response."""
        return (self._same or self.delivery()).same_content(delivery)

    @cached_property
    def unnamed(self) -> tuple[str, ...]:
        """The names here of resources that cannot be requested: they have none, or that of another one."""
        return tuple(name for name, resource in self.resources.items() if name != resource.name)

    def message(self, names: Collection[str]) -> bytes:
        """Return the response with these of the resources; without a copy if they are the control plane's."""
        if self._same is not None and not self.held and len(names) == len(self.resources):
            return self._same.response.raw
        resources = (self.resources[name].raw for name in names)
        return encode_response(self.base.response.type_url, self.version, resources)

    def delivery(self) -> Delivery:
        """Return what Envoy has accepted with this offer, without what is held."""
        serial = self.base.serial - (self.base.serial % 2 == 0)
        if self._same is not None:
            return self.base if self._same is self.base else Delivery(serial, self._same.response)
        base = self.base.response
        version = f"{base.version}+{digest_of(self._kept.values()).hex()[:8]}"
        raw = encode_response(base.type_url, version, (resource.raw for resource in self._kept.values()))
        return Delivery(serial, Response.parse(raw))


def _without(
    resources: Mapping[str, XdsResource], replacements: Mapping[str, XdsResource], withheld: Collection[Key]
) -> dict[str, XdsResource]:
    kept = {}
    for name, resource in resources.items():
        if resource.key not in withheld:
            kept[name] = resource
        elif (replacement := replacements.get(name)) is not None and replacement.key not in withheld:
            kept[name] = replacement
    return kept
