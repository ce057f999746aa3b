"""Both ends of the relay's state machine, reduced to what tests need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.relay.actions import Note, RelayAction, ResponseAccepted, ResponseRejected, SendDown, SendUp
from kumadp.relay.messages import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    SECRET,
    Request,
    Response,
    encode_response,
    encode_status,
)
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.state_machine import RelayStateMachine

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CLUSTER", "ENDPOINTS", "LISTENER", "SECRET", "Bench", "any_of", "contents", "one"]

NODE = b"\x0a\x04node"
REFUSED = encode_status(13, "rejected by Envoy")


def any_of(name: str, body: str = "") -> bytes:
    """Encode a google.protobuf.Any of a resource with this name."""
    return field_bytes(2, field_bytes(1, name.encode()) + field_bytes(9, body.encode()))


def one(body: str) -> bytes:
    """Encode the resource that responses have by default."""
    return any_of("one", body)


def contents(data: bytes) -> set[bytes]:
    return set(Response.parse(data).resources)


class Bench:
    """A state machine, the messages it sent in both directions since the last check, and each Envoy's last nonce."""

    def __init__(self, machine: RelayStateMachine | None = None) -> None:
        self.machine = machine or RelayStateMachine(NODE)
        self.up: list[Request] = []
        self.down: list[tuple[int, Response]] = []
        self.notifications: list[ResponseAccepted | ResponseRejected] = []
        self.notes: list[str] = []
        self.seen: dict[tuple[int, str], Response] = {}
        self.names: dict[tuple[int, str], tuple[str, ...]] = {}
        self.versions: dict[tuple[int, str], str] = {}
        self.nonces = 0

    def do(self, actions: Iterable[RelayAction]) -> None:
        for action in actions:
            match action:
                case SendUp(request):
                    self.up.append(request)
                case SendDown(stream, type_url, data=data):
                    response = Response.parse(data)
                    assert response.type_url == type_url
                    self.down.append((stream, response))
                    self.seen[stream, type_url] = response
                case ResponseAccepted() | ResponseRejected():
                    self.notifications.append(action)
                case Note(text):
                    self.notes.append(text)

    def took_up(self) -> list[Request]:
        taken, self.up = self.up, []
        return taken

    def took_down(self) -> list[tuple[int, str, str]]:
        """Return stream, type and version of each response sent to Envoys."""
        taken, self.down = self.down, []
        return [(stream, response.type_url, response.version) for stream, response in taken]

    # The control plane.

    def connect(self) -> None:
        self.nonces = 0
        self.do(self.machine.upstream_opened())

    def disconnect(self) -> None:
        self.do(self.machine.upstream_closed())

    def respond(self, type_url: str, version: str, *resources: bytes) -> str:
        """Send a response, by default with one resource, whose content is the version; return its nonce."""
        self.nonces += 1
        body = resources or (one(version),)
        self.do(self.machine.upstream_message(encode_response(type_url, version, body, str(self.nonces))))
        return str(self.nonces)

    # The Envoys.

    def envoy(self, stream: int, epoch: int) -> None:
        self.do(self.machine.down_opened(stream, epoch))

    def request(self, stream: int, type_url: str, *names: str, nonce: str | None = None) -> None:
        """Subscribe, or change the names."""
        self.names[stream, type_url] = names
        seen = self.seen.get((stream, type_url))
        sent_nonce = nonce if nonce is not None else seen.nonce if seen else ""
        version = self.versions.get((stream, type_url), "")
        self.do(self.machine.down_message(stream, Request(type_url, version, NODE, names, sent_nonce).encode()))

    def ack(self, stream: int, type_url: str) -> None:
        seen = self.seen[stream, type_url]
        self.versions[stream, type_url] = seen.version
        names = self.names[stream, type_url]
        self.do(self.machine.down_message(stream, Request(type_url, seen.version, b"", names, seen.nonce).encode()))

    def nack(self, stream: int, type_url: str, text: str = "") -> None:
        seen = self.seen[stream, type_url]
        version = self.versions.get((stream, type_url), "")
        names = self.names[stream, type_url]
        request = Request(type_url, version, b"", names, seen.nonce, encode_status(13, text) if text else REFUSED)
        self.do(self.machine.down_message(stream, request.encode()))

    def die(self, stream: int, epoch: int) -> None:
        """Exit unexpectedly."""
        self.do(self.machine.envoy_ended(epoch, expected=False))
        self.do(self.machine.down_closed(stream))

    def live(self, epoch: int, now: float = 0.0) -> None:
        self.do(self.machine.envoy_live(epoch, now=now))

    def serving(self, *, epoch: int = 0, stream: int = 1) -> None:
        """Connect, with one LIVE Envoy that has accepted version 1 of clusters and listeners."""
        self.connect()
        self.envoy(stream, epoch)
        for type_url in (CLUSTER, LISTENER):
            self.respond(type_url, "1")
            self.request(stream, type_url)
            self.ack(stream, type_url)
        self.live(epoch)
        self.took_up()
        self.took_down()
        self.notifications.clear()
