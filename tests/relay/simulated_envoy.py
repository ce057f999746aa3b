"""A simulated Envoy, and the responses of a control plane, for the walks through the relay's state machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, SECRET, Request, Response, encode_status
from tests.relay.harness import NODE

TYPES = (CLUSTER, ENDPOINTS, SECRET, LISTENER)
NAMED = (ENDPOINTS, SECRET)
WITHHELD = "withheld"
REFUSAL = encode_status(13, "no")

Content = tuple[str, frozenset[bytes]]


@dataclass
class Delivery:
    """A response of the control plane, and the answers to it that reached the relay."""

    version: str
    nonce: str
    content: Content
    session: int
    accepted_by_envoy: bool = False
    refused: bool = False
    ignored: bool = False
    answered_up: bool = False


@dataclass
class Session:
    """One type on one Envoy's stream. ``requested``: names that the relay has read, ``names``: those of Envoy.

    ``ahead``: Envoy connected with a version that the relay does not know, and keeps it until there is a newer one.
    """

    names: tuple[str, ...]
    version: str = ""
    nonce: str = ""
    requested: tuple[str, ...] | None = None
    in_flight: tuple[str, str] | None = None
    received: list[str] = field(default_factory=list)
    refused: set[Content] = field(default_factory=set)
    ahead: bool = False


@dataclass
class Envoy:
    """A process. ``pending``: the parts of its exit that the relay has not noticed yet.

    ``adopted``: older than the relay, which treats it as fresh unless it is reported LIVE.
    """

    epoch: int
    stream: int
    first_stream: bool = True
    adopted: bool = False
    live: bool = False
    alive: bool = True
    expected: bool = False
    connected: bool = True
    pending: list[str] = field(default_factory=list)
    inbox: list[Response] = field(default_factory=list)
    outbox: list[Request] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)

    def request(self, type_url: str, error: bytes = b"") -> None:
        session = self.sessions[type_url]
        self.outbox.append(Request(type_url, session.version, NODE, session.names, session.nonce, error))

    def subscribe_to(self, type_url: str, names: tuple[str, ...]) -> None:
        """Subscribe to these names of a type, or to all of a type that has no names."""
        requested_by_envoys = names if type_url in NAMED else ()
        session = self.sessions.get(type_url)
        if session is None and (requested_by_envoys or type_url not in NAMED):
            self.sessions[type_url] = Session(requested_by_envoys)
            self.request(type_url)
        elif session is not None and session.names != requested_by_envoys:
            session.names = requested_by_envoys
            self.request(type_url)

    def process(self, *, refuse: bool) -> None:
        """Read one response: accept it, reject it, or ignore it if nothing of its type is watched."""
        response = self.inbox.pop(0)
        session = self.sessions[response.type_url]
        session.nonce = response.nonce
        if response.type_url in NAMED and not session.names:
            if response.resources:
                self.request(response.type_url)
            else:
                session.version = response.version
            return
        content = (response.type_url, frozenset(response.resources))
        garbage = response.version == WITHHELD
        if garbage or (refuse and content not in session.refused):
            session.refused.add(content)
            self.request(response.type_url, REFUSAL)
            return
        session.version = response.version
        self.request(response.type_url)
