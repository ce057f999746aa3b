"""One type on an Envoy's stream as the relay sees it: what was requested, what was sent, how Envoy answered."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.relay.messages import (
    ENDPOINTS,
    ROUTES,
    SECRET,
    Response,
    encode_nonce,
    encode_response,
    status_message,
)
from kumadp.relay.narrowing import Narrowing
from kumadp.relay.offer import Delivery, EnvoyOffer
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.resources import changed_names

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable

    from kumadp.relay.resources import Key

# Envoy requests these by name. On a new stream, a request without names means that it watches nothing of the type.
NAMED = frozenset({ENDPOINTS, ROUTES, SECRET})
DEADLY = "Envoy exited while applying this response, twice; it is not sent to Envoy again"
# A Secret that Envoy cannot decode. Rejecting it ends Envoy's wait for secrets (SdsApi::onConfigUpdateFailed), which
# otherwise holds up its listeners for the 15 s of initial_fetch_timeout.
WITHHELD = Response.parse(
    encode_response(SECRET, "withheld", [field_bytes(1, SECRET.encode()) + field_bytes(2, b"\xff")])
)
NO_SECRET = EnvoyOffer(Delivery(0, WITHHELD))


class EnvoyAnswer(Struct, frozen=True):
    """An Envoy's answer to a response: its ``version`` and, if it rejected it, ``error`` (a google.rpc.Status)."""

    version: str
    error: bytes
    taken: bool


class EnvoyRejection(Struct):
    """An Envoy's rejection of a response, or ours for it (``by_guard``); ``judged`` once it has had its effects.

    ``of_former``: Envoy has got nothing of the response yet, only what was accepted before (`Exchange.doubt`).
    """

    offer: EnvoyOffer
    answer: EnvoyAnswer
    by_guard: bool = False
    judged: bool = False
    of_former: bool = False


class Exchange:
    """One type of resources on one stream. One response at a time is in flight (``waiting``).

    ``ahead``: Envoy already runs a version that is not in our memory; it keeps it until there is a newer one.
    go-control-plane does the same: it sends the next response of a type only after the answer to the previous one.
    ``continues``: Envoy had resources before this stream. ``partial``: a response may hold some resources only, and
    changes no others. ``version`` is the one that Envoy has fully accepted. ``narrowing`` has what it rejected.
    ``overtaken``: when it counts as jammed (seconds, -inf: to be set), once later ones are answered;
    ``postponed``: then Envoy still waited for resources that it has requested. ``cures``, ``settling``: see `doubt`.
    ``query_at``: when Envoy's admin is queried about clusters in flight (seconds, -inf: to be set), ``query_pause``
    after the query before; ``warming``: the names of those that it showed; ``warms``: it has accepted the response, by
    what it showed.
    """

    def __init__(self, names: tuple[str, ...], *, wildcard: bool, partial: bool = False, version: str = "") -> None:
        self.names = names
        self.wildcard = wildcard
        self.ahead = False
        self.nonce = ""
        self.sent: EnvoyOffer | None = None
        self.waiting = False
        self.overtaken: float | None = None
        self.answer: EnvoyAnswer | None = None
        self.judged = False
        self.took = False
        self.rejection: EnvoyRejection | None = None
        self.narrowing = Narrowing()
        self.continues = bool(version)
        self.postponed = False
        self.cures = False
        self.settling = False
        self.query_at = -inf
        self.query_pause = 0.0
        self.warming: frozenset[str] = frozenset()
        self.warms = False
        self._withdrawn: set[Key] = set()
        # Resources of responses that Envoy has not answered, though others after them.
        self._unanswered: set[Key] = set()
        self._partial = partial
        self._version = version
        self._parts: tuple[str, ...] = ()
        # What Envoy has: of a type in parts the digests by name, else the offer that it accepted.
        self._applied: EnvoyOffer | None = None
        self._has: dict[str, bytes] = {}
        # Names in it that a rejected response had no more, or as others: Envoy may have applied that.
        self._doubtful: set[str] = set()
        # It may have applied some of the last response: what is sent next must be sent whatever it has.
        self._uncertain = True
        # It ignored this one, or rejected it, and nothing of it can be withheld: it is not sent again.
        self._given_up: EnvoyOffer | None = None
        # Endpoints that Envoy waits for although it had the same ones.
        self._awaited: set[str] = set(names)

    @property
    def subscribed(self) -> bool:
        """True if Envoy wants resources of this type. No names after some names mean that it wants none any more."""
        return self.wildcard or bool(self.names)

    def request(self, names: tuple[str, ...]) -> set[str]:
        """Take the names that Envoy requests now; return those that are new."""
        new = set(names).difference(self.names)
        self.names = names
        self.wildcard = self.wildcard and not names
        self.expect(new)
        return new

    def expect(self, names: Iterable[str]) -> None:
        """Envoy waits for these, if it requests them, even if they have not changed."""
        self._given_up = None if self._partial else self._given_up
        self._awaited.update(names)
        self._awaited.intersection_update(self.names)

    def runs(self, key: Key) -> bool:
        """Return True if Envoy has accepted this resource and not got another one of its name since."""
        if self._partial:
            return self._has.get(key[0]) == key[1]
        return self._applied is not None and key[0] not in self._doubtful and key in self._applied

    @property
    def running(self) -> frozenset[Key]:
        """What Envoy has accepted, of a type that is sent as a whole, and got no others of the same names since."""
        resources = self._applied.resources.values() if self._applied is not None else ()
        return frozenset(each.key for each in resources if each.key[0] not in self._doubtful)

    @property
    def version(self) -> str:
        """The version that Envoy has fully accepted, empty if there is none."""
        return self._version

    def has_version(self, version: str) -> bool:
        """Return True if this is the version that Envoy has fully accepted."""
        return self.continues and self._version == version

    @property
    def lacks_some(self) -> bool:
        """True if Envoy has requested resources that it has not got and could still get."""
        rejected = {name for name, _ in self.narrowing.refused}
        return self._partial and any(name not in self._has and name not in rejected for name in self.names)

    def doubt(self, keys: Iterable[Key], unanswered: Collection[Key]) -> None:
        """Give Envoy these only after an answer to the others.

        A cluster that it rejected, in an answer that was lost, keeps warming until a set does not have it; Envoy 1.40
        acknowledges it if it is sent again unchanged. ``cures`` until that set is answered, which may be empty;
        ``settling`` until the next one is.
        """
        self._unanswered.update(unanswered)
        if doubted := tuple(keys):
            self.narrowing.pending.append(doubted)
            self.cures = self.settling = True

    @property
    def ignored(self) -> bool:
        """True if Envoy has ignored the last response."""
        return self.answer is not None and not self.answer.taken and not self.answer.error

    @property
    def has_something(self) -> bool:
        """True if Envoy has answered a response of a type that is sent as a whole, and may have applied it."""
        return self._applied is not None

    def needs(self, offer: EnvoyOffer, *, older: bool = False) -> tuple[str, ...] | None:
        """Return the names of the resources to send; None if nothing has changed for this stream.

        ``older``: it must not replace anything that Envoy runs.
        """
        given_up = self._given_up
        if given_up is not None and given_up.base is offer.base and given_up.digest == offer.digest:
            return None
        if not self._partial:
            has_all = not self._uncertain and self._applied is not None and self._applied.digest == offer.digest
            return None if has_all or older else tuple(offer.resources)
        requested = (name for name in self.names if name in offer.resources)
        return (
            tuple(
                name
                for name in dict.fromkeys((*requested, *offer.unnamed))
                if (name not in self._has)
                or (not older and (name in self._awaited or self._has[name] != offer.resources[name].digest))
            )
            or None
        )

    def send(self, offer: EnvoyOffer, names: tuple[str, ...], nonce: str) -> bytes:
        """Mark a response with these resources as in flight; return the encoded nonce to send after it."""
        self.sent, self._parts, self.nonce, self.waiting = offer, names, nonce, True
        self.overtaken, self.postponed = None, False
        self.query_at, self.warming, self.warms = -inf, frozenset(), False
        self.answer, self.judged = None, False
        self._awaited.difference_update(names)
        self.cures = self.cures and bool(self.narrowing.pending)
        return encode_nonce(nonce)

    def skip(self, offer: EnvoyOffer) -> None:
        """Take the offer as accepted, since Envoy has all of it."""
        if self.sent is not None and self.sent.base is offer.base and self.sent.withheld == offer.withheld:
            return
        self.sent, self._parts, self.judged = offer, (), False
        self._note_version(offer)
        self.answer = EnvoyAnswer(self._version, b"", taken=True)

    def answered(self, version: str, error: bytes, known: Container[Key]) -> None:
        """Take Envoy's answer to the response in flight; ``known``: resources that an Envoy has accepted.

        Without an error but with another version Envoy has ignored the response, since it watches nothing of the type
        (Envoy 1.40, GrpcMuxImpl::onDiscoveryResponse).
        """
        if self.sent is None or self.sent is NO_SECRET:
            self.waiting = False
        elif error:
            self.reject(status_message(error), error, known)
        else:
            self.settling = self.cures
            self._unanswered.clear()
            self.waiting = self.cures = False
            taken = version == self.sent.version
            if taken:
                self._apply(self.sent)
            elif not self._partial:
                self._given_up = self.sent
            self.answer = EnvoyAnswer(self._version, b"", taken)

    @property
    def has_rejected(self) -> bool:
        """True if clusters in flight warm, which Envoy has not accepted: by an admin that shows another version."""
        return bool(self._jammed())

    def withdraw(self) -> bool:
        """Take back clusters in flight that warm although Envoy has rejected them; False if that was done before.

        There is no verdict on them yet: once none of them warms, Envoy sends the reason.
        """
        keys = [key for key in self._jammed() if key not in self._withdrawn]
        if keys:
            self._withdrawn.update(keys)
            self._unanswered.update(self._given())
            self.narrowing.pending.append(tuple(keys))
            self.waiting, self.cures, self._uncertain = False, True, True
        return bool(keys)

    def _jammed(self) -> list[Key]:
        return [key for key in self._given() if key[0] in self.warming and not self.runs(key)]

    def reject(self, reason: str, status: bytes, known: Container[Key], *, by_guard: bool = False) -> bool:
        """Take the response in flight as rejected; ``by_guard``: not in Envoy's words, and only if it can be narrowed.

        The guard suspects what warms, if that is known. Returns False if there is no resource that can be withheld.
        """
        assert self.sent is not None  # noqa: S101 - a response is in flight
        given = [self.sent.resources[name] for name in self._parts]
        fresh = [resource for resource in given if not self.runs(resource.key)]
        old = [resource for resource in fresh if resource.key in known]
        unknown = [resource for resource in fresh if resource.key not in known]
        before = set(self.narrowing.refused)
        if by_guard:
            old, unknown = [], [each for each in given if each.name in self.warming] or unknown
        narrowed = self.narrowing.rejected(
            old, unknown, reason, search=not by_guard, unanswered=() if by_guard else self._unanswered
        )
        if by_guard and not narrowed:
            return False
        new = self.narrowing.refused.keys() - before
        of_former = bool(self.cures or new or self.narrowing.is_unclear)
        of_former = of_former and not any(key in self.sent.base for key in new)
        if by_guard:
            self._unanswered.update(self._given())
        else:
            self._unanswered.clear()
        self.waiting = self.settling = False
        self.cures = by_guard and bool(self.narrowing.pending)
        self.answer = EnvoyAnswer(self._version, status, taken=False)
        self.rejection = EnvoyRejection(self.sent, self.answer, by_guard, of_former=of_former)
        self._given_up = None if narrowed else self.sent
        self._uncertain = True
        for name in self._parts:
            self._has.pop(name, None)
        if self._applied is not None:
            self._doubtful.update(changed_names(self.sent.resources, self._applied.resources))
        return True

    @property
    def unanswered(self) -> frozenset[Key]:
        """What Envoy got and has not answered."""
        return frozenset(self._unanswered).union(self._given() if self.waiting else ())

    def _given(self) -> Iterable[Key]:
        """Return what was sent with the last response."""
        return [self.sent.resources[name].key for name in self._parts] if self.sent is not None else []

    @property
    def parts(self) -> Iterable[Key]:
        """What Envoy has accepted of a type in parts."""
        return self._has.items()

    def keeps_own(self, delivery: Delivery | None, remembered: int) -> bool:
        """Return True if Envoy keeps the version that it connected with, rather than get one that is remembered.

        ``remembered`` is the last serial number of what is only remembered from before.
        """
        return self.ahead and (delivery is None or delivery.serial <= remembered)

    def _apply(self, offer: EnvoyOffer) -> None:
        if self._partial:
            requested = {*self.names, *offer.unnamed}
            self._has = {name: digest for name, digest in self._has.items() if name in requested}
            self._has.update((name, offer.resources[name].digest) for name in self._parts if name in requested)
        else:
            self._applied, self._uncertain = offer, False
            self._doubtful.clear()
        self.took = True
        self._note_version(offer)
        self.narrowing.accepted()

    def _note_version(self, offer: EnvoyOffer) -> None:
        if not offer.withheld:
            self._version = offer.base.response.version
