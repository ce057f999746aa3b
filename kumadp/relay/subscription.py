"""What the relay knows of one type of resources, and the form in which it is handed over or kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.relay.messages import BadMessage, Response
from kumadp.relay.snapshot import TypeSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_VERDICTS = 64


@dataclass(frozen=True, slots=True)
class TypeView:
    """One type for the status: versions (empty: none), names asked for (0: all), open: not yet answered upward.

    ``withheld``: the latest is not given to a fresh Envoy.
    """

    type_url: str
    accepted: str
    latest: str
    open: bool
    names: int
    rejections: int
    withheld: bool


class Delivery:
    """One response as it came from the control plane; ``serial`` tells which is newer, whatever versions say."""

    __slots__ = ("response", "serial")

    def __init__(self, serial: int, response: Response) -> None:
        self.serial = serial
        self.response = response

    def same_content(self, other: Delivery) -> bool:
        """Whether the resources are equal, whatever version and order they came in."""
        return self is other or self.response.digest == other.response.digest


class Verdicts:
    """Digests of contents that were condemned; the oldest are forgotten past 64."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._digests = dict.fromkeys(digests)

    def __contains__(self, delivery: Delivery) -> bool:
        # Digests cost 2 ms a megabyte: not before something was ever condemned.
        return bool(self._digests) and delivery.response.digest in self._digests

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._digests)

    def add(self, delivery: Delivery) -> None:
        """Condemn the content."""
        self._digests[delivery.response.digest] = None
        while len(self._digests) > MOST_VERDICTS:
            del self._digests[next(iter(self._digests))]

    def discard(self, delivery: Delivery) -> None:
        """Clear the content."""
        if self._digests:
            self._digests.pop(delivery.response.digest, None)


class Subscription:
    """One type: what the control plane was asked and answered, and what became of it.

    ``nonce`` and ``open`` are those of the present stream upward: a response is open until it was answered there.
    ``settled``: the Envoy that counts has answered ``latest``. ``trial``: the stream that may try a suspected one.
    """

    def __init__(self, type_url: str, names: tuple[str, ...] = ()) -> None:
        self.type_url = type_url
        self.names = names
        self.sent_names: tuple[str, ...] | None = None
        self.asked = False
        self.nonce = ""
        self.open = False
        self.latest: Delivery | None = None
        self.accepted: Delivery | None = None
        self.settled = False
        self.trial: int | None = None
        self.rejections = 0
        self.rejected = Verdicts()
        self.deadly = Verdicts()
        self.suspected = Verdicts()

    @property
    def wildcard(self) -> bool:
        """Whether all resources of the type are asked for, without names."""
        return not self.names

    @property
    def good_version(self) -> str:
        """The version last accepted, empty when none was."""
        return self.accepted.response.version if self.accepted else ""

    def knows(self, version: str) -> bool:
        """Whether an Envoy of this version has nothing, or what is remembered."""
        return not version or any(one.response.version == version for one in (self.accepted, self.latest) if one)

    def arrived(self, delivery: Delivery) -> None:
        """The control plane has sent a response."""
        self.latest, self.nonce, self.open = delivery, delivery.response.nonce, True
        self.settled, self.trial = False, None

    def dropped(self, nonce: str) -> None:
        """The control plane has sent a response that was dropped; it is still to be answered."""
        self.nonce, self.open = nonce, True
        self.rejections += 1

    def choose(self, stream: int, *, tried: bool) -> Delivery | None:
        """What a stream should have now; ``tried``: its Envoy is LIVE, took one, or has answered the accepted one.

        A condemned content gives way to the accepted one. Where nothing was ever accepted, the good part of a rejected
        response is better than nothing, and so is one that an Envoy ended with only once.
        """
        latest, accepted = self.latest, self.accepted
        if latest is None or latest is accepted:
            return accepted
        if latest in self.deadly:
            return accepted
        if accepted is None:
            return latest
        if latest in self.suspected and self.trial != stream:
            return accepted
        if latest in self.rejected and not tried:
            return accepted
        return latest

    def answered(self, delivery: Delivery, *, applied: bool) -> None:
        """An Envoy that counts has answered it; where it took or refused it, it lived through it."""
        if applied:
            self.suspected.discard(delivery)
        if delivery is self.latest:
            self.trial = None

    def accept(self, delivery: Delivery) -> None:
        """An Envoy that counts has taken it."""
        self.accepted = delivery
        self.rejected.discard(delivery)
        self.settled = self.settled or delivery is self.latest

    def reject(self, delivery: Delivery) -> None:
        """An Envoy that counts has refused it."""
        self.rejected.add(delivery)
        self.rejections += 1
        self.settled = self.settled or delivery is self.latest

    def view(self) -> TypeView:
        """What the status says of it."""
        return TypeView(
            self.type_url,
            self.good_version,
            self.latest.response.version if self.latest else "",
            self.open,
            len(self.names),
            self.rejections,
            self.latest is not self.choose(-1, tried=False),
        )

    def snapshot(self) -> TypeSnapshot:
        """What is worth remembering."""
        latest = None if self.latest is self.accepted or self.latest is None else self.latest.response.raw
        return TypeSnapshot(
            self.type_url,
            self.names,
            self.accepted.response.raw if self.accepted else None,
            latest,
            tuple(self.rejected),
            tuple(self.deadly),
            tuple(self.suspected),
        )

    def restore(self, memory: TypeSnapshot, serial: int) -> None:
        """Take over what was remembered, under two serial numbers from ``serial`` on; what cannot be read is left."""
        self.accepted = _delivery(serial, self.type_url, memory.accepted)
        self.latest = _delivery(serial + 1, self.type_url, memory.latest) or self.accepted
        self.settled = self.latest is self.accepted
        self.rejected = Verdicts(memory.rejected)
        self.deadly = Verdicts(memory.deadly)
        self.suspected = Verdicts(memory.suspected)


def in_order(known: dict[str, Subscription], requested: Subscription) -> dict[str, Subscription]:
    """Subscriptions in the order in which Envoy requests them, before those that were only prefetched.

    Envoy requests clusters, their endpoints, then listeners: the order in which changes do not lose requests.
    """
    if requested.asked:
        return known
    requested.asked = True
    others = [one for one in known.values() if one is not requested]
    ordered = (*(one for one in others if one.asked), requested, *(one for one in others if not one.asked))
    return {one.type_url: one for one in ordered}


def _delivery(serial: int, type_url: str, raw: bytes | None) -> Delivery | None:
    try:
        response = Response.parse(raw or b"")
    except BadMessage:
        return None
    return Delivery(serial, response) if response.type_url == type_url else None
