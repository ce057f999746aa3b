"""One resource type of the relay: requested names, responses of the control plane, and how Envoys answered them."""

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
    """One type for the status: versions (empty: none) and the number of requested names (0: all).

    ``open``: the latest response has not been answered to the control plane. ``withheld``: it is not given to a fresh
    Envoy.
    """

    type_url: str
    accepted: str
    latest: str
    open: bool
    names: int
    rejections: int
    withheld: bool


class Delivery:
    """One response of the control plane; ``serial`` orders responses by age, which versions do not."""

    __slots__ = ("response", "serial")

    def __init__(self, serial: int, response: Response) -> None:
        self.serial = serial
        self.response = response

    def same_content(self, other: Delivery) -> bool:
        """Return True if the resources are equal, in any order and version."""
        return self is other or self.response.digest == other.response.digest


class Verdicts:
    """Digests of rejected or suspected contents; beyond 64 the oldest are forgotten."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._digests = dict.fromkeys(digests)

    def __contains__(self, delivery: Delivery) -> bool:
        # A digest costs 2 ms per megabyte: it is computed only once there is something to compare with.
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


class Subscription:
    """One type: names requested from the control plane, its responses, and how Envoys answered them.

    ``sent_names``, ``nonce`` and ``open`` belong to the present upstream stream: a response is open until it is
    answered there. ``requested``: an Envoy has requested the type. ``settled``: the Envoy whose answers count has
    answered ``latest``. ``trial``: the stream that may retry a suspected response. ``rejected``: an Envoy rejected it;
    ``suspected`` and ``deadly``: an Envoy exited with it once, twice.
    """

    def __init__(self, type_url: str, names: tuple[str, ...] = ()) -> None:
        self.type_url = type_url
        self.names = names
        self.sent_names: tuple[str, ...] | None = None
        self.requested = False
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
        """True if all resources of the type are requested, without names."""
        return not self.names

    @property
    def good_version(self) -> str:
        """The version last accepted, empty if there is none."""
        return self.accepted.response.version if self.accepted else ""

    def knows(self, version: str) -> bool:
        """Return True if ``version`` is empty (Envoy has nothing yet) or in our memory."""
        deliveries = (self.accepted, self.latest)
        return not version or any(delivery.response.version == version for delivery in deliveries if delivery)

    def arrived(self, delivery: Delivery) -> None:
        """The control plane has sent a response."""
        self.latest, self.nonce, self.open = delivery, delivery.response.nonce, True
        self.settled, self.trial = False, None

    def dropped(self, nonce: str) -> None:
        """The control plane has sent a response that was dropped; it must still be answered."""
        self.nonce, self.open = nonce, True
        self.rejections += 1

    def choose(self, stream: int, *, tried: bool) -> Delivery | None:
        """Return the response that a stream should have now; None if there is none.

        ``tried``: its Envoy is LIVE, has accepted a response, or has answered the accepted one. The accepted response
        replaces a rejected, suspected or deadly one. If nothing was ever accepted, the good part of a rejected response
        is better than nothing, and so is a response that an Envoy exited with only once.
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
        """The Envoy whose answers count has answered; ``applied``: it accepted or rejected it, and did not exit."""
        if applied:
            self.suspected.discard(delivery)
        if delivery is self.latest:
            self.trial = None

    def accept(self, delivery: Delivery) -> None:
        """The Envoy whose answers count has accepted it."""
        self.accepted = delivery
        self.rejected.discard(delivery)
        self.settled = self.settled or delivery is self.latest

    def reject(self, delivery: Delivery) -> None:
        """The Envoy whose answers count has rejected it."""
        self.rejected.add(delivery)
        self.rejections += 1
        self.settled = self.settled or delivery is self.latest

    def view(self) -> TypeView:
        """Return the view for the status."""
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
        """Return the memory of this type."""
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

    def restore(self, saved: TypeSnapshot, serial: int) -> None:
        """Restore the memory, with two serial numbers from ``serial`` on; unreadable responses are ignored."""
        self.accepted = _delivery(serial, self.type_url, saved.accepted)
        self.latest = _delivery(serial + 1, self.type_url, saved.latest) or self.accepted
        self.settled = self.latest is self.accepted
        self.rejected = Verdicts(saved.rejected)
        self.deadly = Verdicts(saved.deadly)
        self.suspected = Verdicts(saved.suspected)


def in_order(subscriptions: dict[str, Subscription], requested: Subscription) -> dict[str, Subscription]:
    """Return the subscriptions in the order in which Envoy requests them, followed by those only prefetched.

    Envoy requests clusters, their endpoints, then listeners: the order in which changes do not lose requests.
    """
    if requested.requested:
        return subscriptions
    requested.requested = True
    others = [other for other in subscriptions.values() if other is not requested]
    prefetched = (other for other in others if not other.requested)
    ordered = (*(other for other in others if other.requested), requested, *prefetched)
    return {subscription.type_url: subscription for subscription in ordered}


def _delivery(serial: int, type_url: str, raw: bytes | None) -> Delivery | None:
    try:
        response = Response.parse(raw or b"")
    except BadMessage:
        return None
    return Delivery(serial, response) if response.type_url == type_url else None
