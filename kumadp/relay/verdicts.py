"""Verdicts of Envoys on whole contents and on single resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kumadp.relay.offer import Delivery
    from kumadp.relay.resources import Key

MOST_VERDICTS = 64
MOST_REJECTED = 1024
# If the text is not known: it is not written to disk.
EARLIER = "Envoy rejected this resource earlier"


class Verdicts:
    """Digests of suspected or deadly contents; beyond 64 the oldest are forgotten."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._digests = dict.fromkeys(digests)

    def __contains__(self, delivery: Delivery) -> bool:
        return bool(self._digests) and delivery.response.digest in self._digests

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._digests)

    def add(self, delivery: Delivery) -> None:
        """Add the content."""
        self._digests[delivery.response.digest] = None
        while len(self._digests) > MOST_VERDICTS:
            del self._digests[next(iter(self._digests))]

    def discard(self, delivery: Delivery) -> None:
        """Remove the content."""
        if self._digests:
            self._digests.pop(delivery.response.digest, None)


class RejectedResource(msgspec.Struct, frozen=True):
    """A resource that an Envoy rejected: name, SHA-256 of its bytes, and Envoy's text, empty if it is not known."""

    name: str
    digest: bytes
    reason: str = ""


class RejectedResources:
    """Reasons by resource; beyond 1,024 the oldest are forgotten."""

    def __init__(self, rejected: Iterable[RejectedResource] = ()) -> None:
        self._reasons: dict[Key, str] = {(one.name, one.digest): one.reason for one in rejected}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, key: object) -> bool:
        return key in self._reasons

    def reason(self, key: Key) -> str:
        """Return Envoy's text, or a general one."""
        return self._reasons.get(key) or EARLIER

    def add(self, key: Key, reason: str) -> None:
        """An Envoy has rejected the resource."""
        self._reasons[key] = reason
        while len(self._reasons) > MOST_REJECTED:
            del self._reasons[next(iter(self._reasons))]

    def discard(self, keys: Iterable[Key]) -> None:
        """An Envoy runs with these."""
        for key in keys:
            self._reasons.pop(key, None)

    def snapshot(self) -> tuple[RejectedResource, ...]:
        """Return them to be remembered."""
        return tuple(RejectedResource(name, digest, reason) for (name, digest), reason in self._reasons.items())
