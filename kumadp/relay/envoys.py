"""The Envoys that are connected or have just left: whose answers count, and which names they request."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kumadp.relay.envoy_streams import EnvoyStream
from kumadp.relay.exchange import NAMED
from kumadp.relay.listener_sockets import ListenerSockets
from kumadp.relay.messages import CLUSTER, ENDPOINTS
from kumadp.relay.resources import endpoint_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kumadp.relay.exchange import Exchange
    from kumadp.relay.resources import Key, XdsResource
    from kumadp.relay.subscription import Subscription, WithheldResource


class Envoys:
    """Streams of Envoys, and the sockets of their listeners. ``live``: since when each LIVE epoch is so, in seconds."""

    def __init__(self) -> None:
        self.live: dict[int, float] = {}
        self.sockets = ListenerSockets()
        self._endpoints: dict[bytes, str] = {}
        self._next_endpoints = self._endpoints
        self._streams: dict[int, EnvoyStream] = {}
        # Closed streams, until it is known whether their Envoy has exited.
        self._departed: dict[int, list[EnvoyStream]] = {}

    def __iter__(self) -> Iterator[EnvoyStream]:
        return iter(self._streams.values())

    def get(self, stream: int) -> EnvoyStream | None:
        """Return an open stream."""
        return self._streams.get(stream)

    def opened(self, stream: int, epoch: int) -> None:
        """An Envoy has opened a stream."""
        departed = self._departed.pop(epoch, [])
        former = (*departed, *(down for down in self if down.epoch == epoch and not down.ended))
        reconnected = bool(departed) or epoch in self.live
        if reconnected:
            self.sockets.continued(epoch)
        self._streams[stream] = down = EnvoyStream(stream, epoch, fresh=not reconnected)
        down.follow(former)

    def closed(self, stream: int) -> EnvoyStream | None:
        """A stream has ended; it is returned once, and remembered until it is known whether its Envoy has exited."""
        down = self._streams.pop(stream, None)
        if down is not None and not down.ended:
            self._departed.setdefault(down.epoch, []).append(down)
        return down

    def ended(self, epoch: int, *, expected: bool) -> list[EnvoyStream]:
        """An Envoy has exited; returns its streams that ended before."""
        self.live.pop(epoch, None)
        self.sockets.ended(epoch)
        for down in self._streams.values():
            if down.epoch == epoch:
                down.ended, down.expected = True, expected
        return self._departed.pop(epoch, [])

    def of_type(self, type_url: str) -> list[tuple[EnvoyStream, Exchange]]:
        """Return the streams on which a type was requested."""
        return [(down, exchange) for down in self if (exchange := down.exchanges.get(type_url))]

    def authoritative(self, type_url: str) -> tuple[EnvoyStream, Exchange] | None:
        """Return the stream whose answers count for a type."""
        return max(self.of_type(type_url), key=lambda pair: (pair[1].subscribed, self._rank(pair[0])), default=None)

    def _rank(self, down: EnvoyStream) -> tuple[bool, bool, int, int]:
        return not down.ended, down.epoch in self.live, down.epoch, down.stream

    def jams(self) -> list[tuple[EnvoyStream, Exchange]]:
        """Return the streams on which later types than clusters are answered."""
        return [pair for pair in self.of_type(CLUSTER) if pair[1].waiting and pair[1].overtaken not in (None, inf)]

    def withheld(self, down: EnvoyStream, exchange: Exchange, subscription: Subscription) -> set[Key]:
        """Return the resources that a stream is not given now.

        An Envoy that has just started may retry what another one rejected: a port that was taken may be free now.
        """
        withheld = exchange.narrowing.excluded()
        if not (down.fresh and (exchange.took or down.epoch in self.live)):
            retried = exchange.narrowing.retried
            withheld.update(key for key in subscription.rejected if not exchange.runs(key) and key not in retried)
        return withheld

    def types(self) -> set[str]:
        """Return the types that Envoys want."""
        return {url for down in self for url, exchange in down.exchanges.items() if exchange.subscribed}

    def all_request(self, type_url: str) -> bool:
        """Return True if there are streams, and this type was requested on each."""
        return bool(self._streams) and all(type_url in down.exchanges for down in self)

    def requested(self, type_url: str, name: str) -> bool:
        """Return True if an Envoy requests this name."""
        return any(name in exchange.names for _, exchange in self.of_type(type_url))

    def withheld_resources(self, subscriptions: Iterable[Subscription]) -> list[WithheldResource]:
        """Return the resources that Envoy is not given although it requests them, since it rejected them."""
        every = [each for subscription in subscriptions for each in subscription.withheld_resources()]
        return [each for each in every if each.type_url not in NAMED or self.requested(each.type_url, each.name)]

    def use_clusters(self, clusters: Iterable[XdsResource]) -> None:
        """Request the endpoints of these clusters, once `clusters_applied`."""
        known = self._next_endpoints
        self._next_endpoints = {each.digest: known.get(each.digest) or endpoint_name(each) for each in clusters}

    def clusters_applied(self) -> None:
        """Envoy has requested the endpoints that it wants of the latest clusters: others can be requested too.

        Not earlier: they would be answered without having been tried.
        """
        self._endpoints = self._next_endpoints

    def names(self, subscription: Subscription) -> tuple[str, ...]:
        """Return the names to request, () for all: those of all Envoys, and the previous ones until all have settled.

        An Envoy has settled once it is LIVE and has requested the type on its present stream. Endpoints of a cluster
        that Envoy rejects are requested too: a control plane in ADS mode that has them does not answer otherwise, and
        good clusters that came with it would wait.
        """
        type_url = subscription.type_url
        living = [down for down in self if not down.ended]
        exchanges = [exchange for down in living if (exchange := down.exchanges.get(type_url))]
        if any(exchange.wildcard for exchange in exchanges):
            return ()
        union = dict.fromkeys(name for exchange in exchanges for name in exchange.names)
        if union and type_url == ENDPOINTS:
            union.update(dict.fromkeys(filter(None, self._endpoints.values())))
        settled = all(down.epoch in self.live and type_url in down.exchanges for down in living)
        shrink = bool(living) and not self._departed and settled
        if not union or (subscription.wildcard and not shrink):
            return subscription.names
        remaining = [name for name in subscription.names if name in union or not shrink]
        return tuple(dict.fromkeys((*remaining, *union)))
