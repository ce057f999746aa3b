"""One resource type of the relay: requested names, responses of the control plane, and how Envoys answered them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.records import hiding
from kumadp.relay.messages import BadMessage, Response, encode_response
from kumadp.relay.offer import Delivery, EnvoyOffer
from kumadp.relay.snapshot import TypeSnapshot
from kumadp.relay.verdicts import EARLIER, RejectedResource, RejectedResources, Verdicts

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping

    from kumadp.relay.resources import Key, XdsResource

# Offers of the latest response: to two Envoys, one of which keeps removed clusters, and what one accepts.
_MOST_OFFERS = 4
_MOST_VERSIONS = 32


class TypeView(Struct, frozen=True):
    """One type for the status: versions (empty: none) and the number of requested names (0: all).

    ``open``: the latest response has not been answered to the control plane. ``withheld``: it, or a resource of it, is
    not given to a fresh Envoy.
    """

    type_url: str
    accepted: str
    latest: str
    open: bool
    names: int
    rejections: int
    withheld: bool


class WithheldResource(Struct, frozen=True):
    """A resource of the latest response that Envoy is not given, and Envoy's reason."""

    type_url: str
    name: str
    digest: bytes
    reason: str
    resource: XdsResource

    __repr__ = hiding("resource")


class Subscription:
    """One type: names requested from the control plane, its responses, and how Envoys answered them.

    ``sent_names``, ``nonce``, ``open``, ``refused`` and ``unreported`` belong to the present upstream stream: a
    response is open until it is answered there, and refused if that was a rejection; ``unreported`` are rejected
    resources of earlier ones. ``reported`` is for the log.
    ``requested``: an Envoy has requested the type. ``accepted`` has no resource that was rejected.
    ``trial``: the stream that may retry a suspected response. ``rejected``: resources that an Envoy rejected;
    ``suspected`` and ``deadly``: contents that an Envoy exited with once, twice. ``unsettled``: resources that the
    relay before this one may have sent to an Envoy, which had not accepted them.
    """

    def __init__(self, type_url: str, names: tuple[str, ...] = ()) -> None:
        self.type_url = type_url
        self.names = names
        self.sent_names: tuple[str, ...] | None = None
        self.requested = False
        self.nonce = ""
        self.open = False
        self.refused = False
        self.latest: Delivery | None = None
        self.accepted: Delivery | None = None
        self.trial: int | None = None
        self.rejections = 0
        self.rejected = RejectedResources()
        self.reported: frozenset[Key] = frozenset()
        self.unreported: set[Key] = set()
        self.deadly = Verdicts()
        self.suspected = Verdicts()
        self.unsettled: frozenset[Key] = frozenset()
        self._rejected_earlier = Verdicts()
        # Of a type in parts, what was accepted of it: the rest of an accepted response was not requested.
        self._taken: dict[str, bytes] = {}
        self._versions: dict[str, None] = {}
        self._offers: dict[tuple[object, ...], EnvoyOffer] = {}

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
        known = any(delivery.response.version == version for delivery in deliveries if delivery)
        return not version or known or version in self._versions

    def sent(self, version: str) -> None:
        """An Envoy is given this version; it keeps it while later ones change nothing for it."""
        self._versions.pop(version, None)
        self._versions[version] = None
        while len(self._versions) > _MOST_VERSIONS:
            del self._versions[next(iter(self._versions))]

    def arrived(self, delivery: Delivery) -> None:
        """The control plane has sent a response."""
        before = self.latest
        if self.open and before is not None:
            self.unreported.update(key for key in self.rejected if key in before and before.response.brings(key[0]))
        self.latest, self.nonce, self.open = delivery, delivery.response.nonce, True
        self.refused = False
        self.trial = None
        self._offers.clear()
        self._taken = {name: digest for name, digest in self._taken.items() if name in delivery.response.by_name}
        self._convert_earlier()

    def dropped(self, nonce: str) -> None:
        """The control plane has sent a response that was dropped; it must still be answered."""
        self.nonce, self.open, self.refused = nonce, True, False
        self.rejections += 1

    def choose(self, stream: int) -> Delivery | None:
        """Return the response that a stream should have now; None if there is none.

        The accepted response replaces a suspected or deadly one. If nothing was ever accepted, a response that an Envoy
        exited with only once is better than nothing.
        """
        latest, accepted = self.latest, self.accepted
        if latest is None or latest in self.deadly:
            return accepted
        if accepted is not None and latest in self.suspected and self.trial != stream:
            return accepted
        return latest

    def offer(self, base: Delivery, withheld: Collection[Key], held: Mapping[str, XdsResource]) -> EnvoyOffer:
        """Return ``base`` without the resources ``withheld``, and with those ``held``."""
        everywhere = (base, self.accepted or (), {resource.key for resource in held.values()})
        here = frozenset(key for key in withheld if any(key in each for each in everywhere))
        identity = (base, here, *held.values())
        offer = self._offers.get(identity)
        if offer is None:
            offer = self._offers[identity] = EnvoyOffer(base, self.accepted, here, held)
            while len(self._offers) > _MOST_OFFERS:
                del self._offers[next(iter(self._offers))]
        return offer

    def forget_offers(self) -> None:
        """Free what was offered before: it may hold clusters that are no longer held."""
        self._offers.clear()

    def answered(self, delivery: Delivery, *, applied: bool) -> None:
        """The Envoy whose answers count has answered; ``applied``: it accepted or rejected it, and did not exit."""
        if applied:
            self.suspected.discard(delivery)
        if delivery is self.latest:
            self.trial = None

    def accept(self, offer: EnvoyOffer) -> bool:
        """The Envoy whose answers count has accepted it; True if it differs from what was accepted before."""
        before = self.accepted
        if before is not None and offer.base.serial < before.serial:
            return False
        accepted = offer.delivery()
        if before is not None and accepted.serial == before.serial and accepted.same_content(before):
            return False
        self.accepted = accepted
        self._offers.clear()
        return before is None or not before.same_content(accepted)

    def take(self, parts: Iterable[Key]) -> None:
        """The Envoy whose answers count runs with these, of a type in parts."""
        self._taken.update(parts)

    def known(self, *, partial: bool) -> Container[Key]:
        """Return the resources that an Envoy is known to accept."""
        return self._taken.items() if partial else self.accepted or ()

    def report(self, keys: Iterable[Key]) -> None:
        """These are logged; what is no longer rejected is forgotten."""
        self.reported = frozenset(key for key in self.reported if key in self.rejected) | frozenset(keys)

    def withheld(self) -> list[Key]:
        """Return the resources of the latest response that a fresh Envoy is not given at first."""
        latest = self.latest
        return [key for key in self.rejected if latest is not None and key in latest]

    def withheld_resources(self) -> list[WithheldResource]:
        """Return the resources of the latest response that a fresh Envoy is not given at first, for the status."""
        if self.latest is None:
            return []
        resources = self.latest.response.by_name
        return [
            WithheldResource(self.type_url, name, digest, self.rejected.reason((name, digest)), resources[name])
            for name, digest in self.withheld()
        ]

    def view(self) -> TypeView:
        """Return the view for the status."""
        return TypeView(
            self.type_url,
            self.good_version,
            self.latest.response.version if self.latest else "",
            self.open,
            len(self.names),
            self.rejections,
            self.latest is not self.choose(-1) or bool(self.withheld()),
        )

    def snapshot(self, held: Collection[XdsResource] = (), unanswered: Iterable[Key] = ()) -> TypeSnapshot:
        """Return the memory of this type, with the resources ``held``, and those ``unanswered`` by Envoys."""
        latest = None if self.latest is self.accepted or self.latest is None else self.latest.response.raw
        return TypeSnapshot(
            self.type_url,
            self.names,
            self.accepted.response.raw if self.accepted else None,
            latest,
            deadly=tuple(self.deadly),
            suspected=tuple(self.suspected),
            withheld=self.rejected.snapshot(),
            held=tuple(bytes(resource.raw) for resource in held),
            versions=tuple(self._versions),
            unanswered=tuple(RejectedResource(*key) for key in sorted(unanswered) if key not in (self.accepted or ())),
        )

    def restore(self, saved: TypeSnapshot, serial: int) -> None:
        """Restore the memory, with two serial numbers from ``serial`` on; unreadable responses are ignored."""
        self.accepted = _delivery(serial, self.type_url, saved.accepted)
        self.latest = _delivery(serial + 1, self.type_url, saved.latest) or self.accepted
        latest = self.latest.response.by_name.values() if self.latest is not self.accepted and self.latest else ()
        self.rejected = RejectedResources(saved.withheld)
        given = [each.key for each in latest if each.key not in self.rejected]
        given += [(each.name, each.digest) for each in saved.unanswered]
        self.unsettled = frozenset(key for key in given if key not in (self.accepted or ()))
        self.deadly = Verdicts(saved.deadly)
        self.suspected = Verdicts(saved.suspected)
        self._rejected_earlier = Verdicts(saved.rejected)
        self._versions = dict.fromkeys(saved.versions)
        self._convert_earlier()

    def _convert_earlier(self) -> None:
        """Take an earlier kumadp's verdict on the content as one on the resources that no Envoy has accepted."""
        latest, accepted = self.latest, self.accepted
        if latest is None or accepted is None or latest not in self._rejected_earlier:
            return
        self._rejected_earlier.discard(latest)
        for resource in latest.response.by_name.values():
            if resource.key not in accepted:
                self.rejected.add(resource.key, EARLIER)


def held_of(saved: TypeSnapshot) -> Collection[XdsResource]:
    """Return the clusters that Envoy kept after their removal."""
    return Response.parse(encode_response(saved.type_url, "", saved.held)).by_name.values()


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
