"""Delta xDS towards the control plane, of one stream: differences on the wire, the whole set for the state machine.

Pure. Rules: Envoy's documentation of the xDS protocol, and what Kuma 2.13, 2.14 and 3.0 do (measured): a type is frozen
after a response until its next request; names that do not exist are not answered; a cluster change has the endpoints
sent again; what was rejected counts as sent until it changes, or until the stream is new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kumadp.relay.delta_messages import DeltaResponse, encode_delta_request
from kumadp.relay.dialect import SERVICE, Arrival, XdsProtocol
from kumadp.relay.messages import SECRET, BadMessage, Outline
from kumadp.relay.resource_set import ResourceSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kumadp.relay.messages import Request
    from kumadp.relay.snapshot import TypeSnapshot

# gRPC's servers take 4 MiB in a message, unless configured otherwise. Larger initial versions are left out.
LARGEST_VERSIONS = 3 << 20
WILDCARD = "*"
LOST = "a response before it was dropped, and what it changed is sent again only on a new stream"


class Memory:
    """What Envoy has accepted of each type, by name: read from the state machine's memory when a stream begins.

    Reading costs 3 ms per megabyte; what ``former`` has read already is not read again. For a thread if it is large.
    """

    def __init__(self, types: Iterable[TypeSnapshot] = (), former: Memory | None = None) -> None:
        types = tuple(types)
        # Where the accepted response is not the latest one, an answer that changes nothing is still news.
        self.unsettled = frozenset(saved.type_url for saved in types if saved.latest is not None)
        known = former.sets if former is not None else {}
        self.sets: dict[str, tuple[bytes, ResourceSet]] = {}
        for saved in types:
            raw = saved.accepted
            if raw is not None:
                has = known.get(saved.type_url)
                self.sets[saved.type_url] = has if has is not None and has[0] is raw else (raw, _read(raw))


class _Type:
    """The type ``type_url`` on the stream.

    ``names`` are subscribed, () means all. ``held`` is what the control plane counts as sent. ``settled``: Envoy has
    accepted it. ``nonce``: of the response that is to be answered, empty if there is none; ``rejected``: of the last
    one if it was rejected. ``version``: of the set that it made, None if it was dropped. ``lost``: the control plane
    counts as sent what was dropped.
    """

    def __init__(self, type_url: str, names: tuple[str, ...], held: ResourceSet, *, settled: bool) -> None:
        self.type_url = type_url
        self.names = names
        self.held = held
        self.settled = settled
        self.remembered = settled
        self.answered = False
        self.nonce = self.rejected = ""
        self.version: str | None = None
        self.lost = False


class Delta:
    """Delta xDS. ``largest``: a set of more bytes is rejected. One object is of use for one stream."""

    protocol = XdsProtocol.DELTA
    method = f"{SERVICE}/DeltaAggregatedResources"

    def __init__(self, memory: Memory | None = None, *, largest: int) -> None:
        memory = memory or Memory()
        self._unsettled = memory.unsettled
        self._accepted = {type_url: accepted for type_url, (_, accepted) in memory.sets.items()}
        self._largest = largest
        self._node = b""
        self._types: dict[str, _Type] = {}

    # Requests

    def encode(self, request: Request) -> tuple[bytes, ...]:
        """Return the messages for a request of the state machine: answer, change of names, or both.

        Each has the Node, of some 3 KB: Kuma 2.11 to 2.13 end the stream at a request without it, and behind one
        address there can be control planes of several versions.
        """
        self._node = request.node or self._node
        known = self._types.get(request.type_url)
        if known is None:
            return (self._first(request),)
        messages = []
        if known.nonce and request.nonce == known.nonce:
            messages.append(self._answer(known, request.error))
            known.settled = not request.error
            known.rejected = request.nonce if request.error else ""
        elif known.rejected and request.nonce == known.rejected and request.version == known.version:
            # Envoy has accepted it since.
            known.nonce, known.rejected, known.settled = known.rejected, "", True
            messages.append(self._answer(known))
        if set(request.names) != set(known.names):
            former, wanted = dict.fromkeys(known.names or (WILDCARD,)), dict.fromkeys(request.names or (WILDCARD,))
            known.names = request.names
            if request.names:
                # go-control-plane 0.14 forgets what is unsubscribed, and never removes it.
                known.held = known.held.only(frozenset(request.names))
            messages.append(
                encode_delta_request(
                    request.type_url,
                    node=self._node,
                    subscribe=[name for name in wanted if name not in former],
                    unsubscribe=[name for name in former if name not in wanted],
                )
            )
        return tuple(messages)

    def _first(self, request: Request) -> bytes:
        """Return the first request of a type: it names what Envoy has, so that only differences are sent."""
        type_url = request.type_url
        # It is not needed again, and would keep an old response in memory.
        accepted = self._accepted.pop(type_url, None)
        if request.names and type_url in self._unsettled:
            # Of resources that are as Envoy has accepted them nothing would be sent, and a newer set that it has not
            # accepted would stay the one to give it.
            accepted = None
        held = accepted or ResourceSet()
        if request.names:
            held = held.only(frozenset(request.names))
        versions = held.versions()
        settled = accepted is not None and type_url not in self._unsettled
        # An entry has two tags and three lengths, beside name and version.
        if sum(len(name.encode()) + len(version) + 8 for name, version in versions.items()) > LARGEST_VERSIONS:
            held, versions, settled = ResourceSet(), {}, False
        self._types[type_url] = _Type(type_url, request.names, held, settled=settled)
        return encode_delta_request(type_url, node=self._node, subscribe=request.names, versions=versions)

    def _answer(self, known: _Type, error: bytes = b"") -> bytes:
        nonce, known.nonce = known.nonce, ""
        return encode_delta_request(known.type_url, node=self._node, nonce=nonce, error=error)

    def expects_answer(self, request: Request) -> bool:
        """Return whether silence after it is unusual: Kuma 2.14 does not answer if nothing changed since we had it."""
        known = self._types.get(request.type_url)
        return known is not None and not known.answered and not known.remembered

    # Responses

    def weight(self, data: bytes) -> int:
        """Return how many bytes `read` works on, at most."""
        return len(data) + max((known.held.size for known in self._types.values()), default=0)

    def read(self, data: bytes) -> Arrival:
        """Apply a DeltaDiscoveryResponse to what is held; `take` adopts the result. For a thread. Raises BadMessage."""
        message = DeltaResponse.parse(data)
        type_url = message.type_url
        outline = Outline(type_url, message.version, message.nonce)
        known = self._types.get(type_url)
        if known is None:
            return Arrival(outline)
        if known.lost:
            return Arrival(outline, refused=LOST, lost=True, outdated=True)
        if message.fault:
            return Arrival(outline, refused=message.fault, lost=True)
        names = frozenset(known.names)
        resources = {name: one for name, one in message.resources.items() if not names or name in names}
        changed = known.held.differing(resources)
        removed = message.removed.intersection(known.held.names)
        if type_url == SECRET:
            # Kuma sends this of an identity that is not ready. What needs the secret no more drops its subscription.
            removed -= names
        if known.settled and not changed and not removed:
            return Arrival(outline, held=known.held)
        unwanted = removed.union(name for name in known.held.names if names and name not in names)
        try:
            held, response = known.held.with_changes(outline, changed, unwanted, largest=self._largest)
        except BadMessage as error:
            return Arrival(outline, refused=str(error), lost=True)
        return Arrival(outline, response=replace(response, sent=frozenset(resources)), held=held)

    def take(self, arrival: Arrival) -> tuple[bytes, ...]:
        """Adopt what was read. Return what to send at once: the answer to a response that changes nothing."""
        known = self._types.get(arrival.outline.type_url)
        if known is None:
            return ()
        known.answered, known.nonce, known.rejected = True, arrival.outline.nonce, ""
        known.version = arrival.response.version if arrival.response is not None else None
        known.lost = known.lost or arrival.lost
        if arrival.held is None:
            return ()
        # A name that was unsubscribed while a thread read this: the control plane has forgotten it.
        names = frozenset(known.names)
        known.held = arrival.held if not names or names.issuperset(arrival.held.names) else arrival.held.only(names)
        if arrival.response is None:
            return (self._answer(known),)
        known.settled = False
        return ()

    def drop(self, outline: Outline) -> None:
        """Note that a response was dropped unread."""
        self.take(Arrival(outline, refused=LOST, lost=True))


def _read(raw: bytes) -> ResourceSet:
    try:
        return ResourceSet.parse(raw)
    except BadMessage:
        return ResourceSet()
