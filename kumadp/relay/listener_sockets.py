"""What Envoy cannot change of a listener's sockets while it runs: it gets the listener as its sockets are. Pure.

Seen with Envoy 1.40, for a listener of the same name. It rejects another ``enable_reuse_port`` ("reuse port cannot be
changed during an update"), at any address: a control plane of Kuma 2.14 sets it by ``feature-reuse-port``, one of 2.13
never does. It exits (SIGSEGV) if ``bind_to_port`` becomes true and the address stays.

An Envoy that takes over by hot restart may set SO_REUSEPORT: its workers share the one socket of the old one. If it
unset it, connections that wait at the other sockets of the old one would be reset (5 to 8 of 20,000, seen).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kumadp.relay.actions import Note, SendDown
from kumadp.relay.messages import LISTENER, BadMessage, encode_response
from kumadp.relay.protobuf import field_bytes, fields
from kumadp.relay.resources import value_at
from kumadp.relay.snapshot import KeptSockets
from kumadp.relay.texts import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from kumadp.relay.actions import RelayAction
    from kumadp.relay.envoy_streams import EnvoyStream
    from kumadp.relay.offer import EnvoyOffer
    from kumadp.relay.resources import XdsResource
    from kumadp.relay.subscription import Subscription

# Fields of envoy.config.listener.v3.Listener; the last two are google.protobuf.BoolValue.
_ADDRESSES, _BIND, _REUSE_PORT = (2, 33), 26, 29
_TAGS = (b"\xd2\x01", b"\xea\x01")
_FALSE, _TRUE = b"\x08\x00", b"\x08\x01"
_MOST_NAMED = 3


class Sockets(NamedTuple):
    """Sockets of a listener: with SO_REUSEPORT, bound to their port. The defaults are Envoy's on Linux."""

    reuse_port: bool = True
    bound: bool = True


class RunningSockets(NamedTuple):
    """Sockets as an Envoy has them, and what the listener with this ``digest`` wants.

    The encoded ``addresses`` are empty if the sockets are bound.
    """

    digest: bytes
    wanted: Sockets
    sockets: Sockets
    addresses: bytes

    @property
    def differ(self) -> bool:
        """True if Envoy keeps other sockets than the listener wants."""
        return self.sockets != self.wanted


_DEFAULT = Sockets()


class ListenerSockets:
    """The sockets of each Envoy's listeners."""

    def __init__(self) -> None:
        self._running: dict[int, dict[str, RunningSockets]] = {}
        self._restored: dict[str, RunningSockets] = {}

    def restore(self, saved: Subscription | None, kept: Iterable[KeptSockets]) -> None:
        """Take what an Envoy of a previous relay had accepted, and which of its sockets differ from that."""
        if saved is None or saved.accepted is None:
            return
        differing = {each.name: Sockets(each.reuse_port, each.bound) for each in kept}
        self._restored = {
            name: _running(listener, wanted := wanted_sockets(listener), differing.get(name) or wanted)
            for name, listener in saved.accepted.response.by_name.items()
        }

    def kept(self) -> tuple[KeptSockets, ...]:
        """Return the sockets of the newest Envoy that differ from what the control plane has sent."""
        newest = self._running[max(self._running)] if self._running else self._restored
        return tuple(KeptSockets(name, *running.sockets) for name, running in newest.items() if running.differ)

    def continued(self, epoch: int) -> None:
        """An Envoy has connected that had listeners before, from this relay or a previous one."""
        self._running.setdefault(epoch, self._restored)

    def ended(self, epoch: int) -> None:
        """An Envoy has exited."""
        self._running.pop(epoch, None)

    def send(self, down: EnvoyStream, offer: EnvoyOffer, names: Collection[str], nonce: bytes) -> list[RelayAction]:
        """Return the actions that send these resources of an offer, with listeners as the sockets of this Envoy are."""
        type_url = offer.base.response.type_url
        actions: list[RelayAction] = []
        message: bytes | None = None
        if type_url == LISTENER:
            before, now = self._running.get(down.epoch, {}), self._keep(down.epoch, offer.resources)
            kept = {name: running.sockets for name, running in now.items() if running.differ}
            actions += _notes(name for name in kept if name not in before or not before[name].differ)
            if kept:
                every = ((offer.resources[name], kept.get(name)) for name in names)
                raw = (with_sockets(listener, sockets) if sockets else listener.raw for listener, sockets in every)
                message = encode_response(type_url, offer.version, raw)
        return [*actions, SendDown(down.stream, type_url, message or offer.message(names), nonce)]

    def _keep(self, epoch: int, listeners: Mapping[str, XdsResource]) -> dict[str, RunningSockets]:
        """Note the sockets that Envoy has with these listeners, and return them."""
        before, shared = self._running.get(epoch, {}), self._shared(epoch)
        after: dict[str, RunningSockets] = {}
        for name, listener in listeners.items():
            running = before.get(name)
            if running is None or running.digest != listener.digest:
                wanted = wanted_sockets(listener)
                sockets = wanted._replace(reuse_port=wanted.reuse_port or name in shared)
                if running is not None:
                    sockets = _possible(running, wanted, listener)
                running = _running(listener, wanted, sockets)
            after[name] = running
        self._running[epoch] = after
        return after

    def _shared(self, epoch: int) -> set[str]:
        """Return the listeners with SO_REUSEPORT whose sockets an Envoy gets by hot restart."""
        return {
            name
            for other, listeners in self._running.items()
            if other < epoch
            for name, running in listeners.items()
            if running.sockets.reuse_port
        }


def wanted_sockets(listener: XdsResource) -> Sockets:
    """Return what a listener wants; the defaults if it cannot be read, as Envoy will reject it."""
    source = listener.source
    # Nearly all listeners of a mesh have neither field, and to search is a tenth of the work of reading.
    if all(source.find(tag, listener.start, listener.end) < 0 for tag in _TAGS):
        return _DEFAULT
    reuse_port, bound = _DEFAULT
    try:
        for number, first, last in fields(source, *_value(listener)):
            if number == _REUSE_PORT:
                reuse_port = any(source[first + 1 : last])
            elif number == _BIND:
                bound = any(source[first + 1 : last])
    except BadMessage:
        return _DEFAULT
    return Sockets(reuse_port, bound)


def with_sockets(listener: XdsResource, sockets: Sockets) -> bytes | memoryview:
    """Return the encoded listener with these sockets; as it is if it cannot be read.

    They are appended: the last value of a field counts.
    """
    source, wanted = listener.source, wanted_sockets(listener)
    try:
        start, end = _value(listener)
        every = fields(source, listener.start, listener.end)
        head = b"".join(field_bytes(1, source[first:last]) for number, first, last in every if number == 1)
    except BadMessage:
        return listener.raw
    more = b""
    if sockets.reuse_port != wanted.reuse_port:
        more += field_bytes(_REUSE_PORT, _TRUE if sockets.reuse_port else _FALSE)
    if sockets.bound != wanted.bound:
        more += field_bytes(_BIND, _TRUE if sockets.bound else _FALSE)
    return head + field_bytes(2, source[start:end] + more)


def _possible(running: RunningSockets, wanted: Sockets, listener: XdsResource) -> Sockets:
    bound = wanted.bound and (running.sockets.bound or running.addresses != _addresses(listener))
    return Sockets(running.sockets.reuse_port, bound)


def _running(listener: XdsResource, wanted: Sockets, sockets: Sockets) -> RunningSockets:
    return RunningSockets(listener.digest, wanted, sockets, b"" if sockets.bound else _addresses(listener))


def _addresses(listener: XdsResource) -> bytes:
    source = listener.source
    try:
        every = fields(source, *_value(listener))
        return b"".join(source[first:last] for number, first, last in every if number in _ADDRESSES)
    except BadMessage:
        return b""


def _value(listener: XdsResource) -> tuple[int, int]:
    """Return where the value of the google.protobuf.Any is. Raises BadMessage."""
    source, start, end = listener.source, listener.start, listener.end
    if at := value_at(source, start, end):
        return at, end
    return next(((first, last) for number, first, last in fields(source, start, end) if number == 2), (end, end))


def _notes(names: Iterable[str]) -> list[Note]:
    every = list(names)
    if not every:
        return []
    shown = ", ".join(map(one_line, every[:_MOST_NAMED])) + (", ..." if len(every) > _MOST_NAMED else "")
    why = "Envoy cannot change SO_REUSEPORT of a listener while it runs, nor bind one that was not bound"
    return [Note(f"sockets are kept until Envoy is replaced, against the control plane, for {shown}: {why}")]
