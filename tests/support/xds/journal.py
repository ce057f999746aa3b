"""What the test control plane saw and did, in order, with times (`time.monotonic`)."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(enum.Enum):
    """What a discovery request was."""

    FIRST = "first of its type on its stream"
    ACK = "took the response"
    NACK = "rejected the response"
    NAMES = "requested other resources"
    STALE = "answered an older response: ignored, but for Delta"


@dataclass(frozen=True)
class Request:
    """A discovery request; ``version`` is what the client has, ``nonce`` what it answers.

    Of Delta are ``unsubscribed`` and ``initial`` (versions by name); its ``names`` are those subscribed to.
    """

    stream: int
    node: str
    kind: Kind
    type_url: str
    version: str
    nonce: str
    names: tuple[str, ...]
    error: str
    has_node: bool
    raw: bytes
    delta: bool = False
    unsubscribed: tuple[str, ...] = ()
    initial: Mapping[str, str] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Response:
    """A discovery response that was sent; of Delta are ``versions`` by name and ``removed``."""

    stream: int
    node: str
    type_url: str
    version: str
    nonce: str
    names: tuple[str, ...]
    delta: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    at: float = field(default_factory=time.monotonic)


class What(enum.Enum):
    """Something that happened to a stream or a node."""

    OPENED = "an ADS stream opened"
    REFUSED = "an ADS stream refused: the node has an active one"
    UNAUTHENTICATED = "an ADS or HDS stream refused: its token"
    ADMITTED = "an ADS stream is the one of its node"
    REGISTERED = "the Dataplane of the stream's node is in the mesh"
    UNSERVED = "an ADS stream of a protocol that this version does not serve"
    UNIMPLEMENTED = "an ADS stream refused: its protocol"
    ENDED = "an ADS stream ended by an error, which is sent late"
    CLOSED = "an ADS stream ended"
    DEREGISTERED = "the Dataplane is out of the mesh"
    FREED = "the node may open a stream again"
    UNANSWERED = "a request that names fewer resources than there are was not answered"
    HDS_OPENED = "an HDS stream opened"
    HDS_CLOSED = "an HDS stream ended"


@dataclass(frozen=True)
class Event:
    """An event; ``node`` is empty until the stream has named it."""

    what: What
    stream: int
    node: str = ""
    detail: str = ""
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Report:
    """A report of an HDS stream: by cluster, whether all its endpoints are healthy."""

    stream: int
    node: str
    healthy: dict[str, bool]
    at: float = field(default_factory=time.monotonic)


class Journal:
    """The four records; they only grow, so tests read them while they are written."""

    def __init__(self) -> None:
        self.all_requests: list[Request] = []
        self.all_responses: list[Response] = []
        self.all_events: list[Event] = []
        self.all_reports: list[Report] = []

    def add(self, entry: Request | Response | Event | Report) -> None:
        """Write an entry down."""
        lists: dict[type, list[Any]] = {
            Request: self.all_requests,
            Response: self.all_responses,
            Event: self.all_events,
            Report: self.all_reports,
        }
        lists[type(entry)].append(entry)

    def requests(
        self, type_url: str | None = None, kind: Kind | None = None, *, stream: int | None = None, since: float = 0.0
    ) -> list[Request]:
        """Requests of a type, kind or stream, not before ``since``."""
        return [
            entry
            for entry in list(self.all_requests)
            if type_url in {None, entry.type_url}
            and kind in {None, entry.kind}
            and stream in {None, entry.stream}
            and entry.at >= since
        ]

    def responses(
        self, type_url: str | None = None, *, stream: int | None = None, since: float = 0.0
    ) -> list[Response]:
        """Responses of a type or stream, not before ``since``."""
        return [
            entry
            for entry in list(self.all_responses)
            if type_url in {None, entry.type_url} and stream in {None, entry.stream} and entry.at >= since
        ]

    def events(self, what: What, *, node: str | None = None, since: float = 0.0) -> list[Event]:
        """Events of a kind or node, not before ``since``."""
        return [
            entry
            for entry in list(self.all_events)
            if entry.what is what and node in {None, entry.node} and entry.at >= since
        ]

    def reports(self, *, stream: int | None = None, since: float = 0.0) -> list[Report]:
        """Health reports of a stream, not before ``since``."""
        return [entry for entry in list(self.all_reports) if stream in {None, entry.stream} and entry.at >= since]
