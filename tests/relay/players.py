"""An Envoy and the responses of a control plane, as the walks around the relay's state machine know them."""

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
    taken: bool = False
    refused: bool = False
    left: bool = False
    answered_up: bool = False


@dataclass
class Session:
    """One type on one Envoy's stream. ``asked``: as the relay has read it, ``names``: as Envoy has it.

    ``ahead``: its Envoy came with a version that the relay does not know, so that it keeps it until there is a new one.
    """

    names: tuple[str, ...]
    version: str = ""
    nonce: str = ""
    asked: tuple[str, ...] | None = None
    under_way: tuple[str, str] | None = None
    given: list[str] = field(default_factory=list)
    refused: set[Content] = field(default_factory=set)
    ahead: bool = False


@dataclass
class Envoy:
    """A process. ``pending``: what the relay has not noticed of its end yet.

    ``adopted``: older than the relay, which takes it for a fresh one unless it is told that it is LIVE.
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

    def wish(self, type_url: str, names: tuple[str, ...]) -> None:
        """Want these names of a type from now on; a type that has none is asked for whole."""
        wanted = names if type_url in NAMED else ()
        session = self.sessions.get(type_url)
        if session is None and (wanted or type_url not in NAMED):
            self.sessions[type_url] = Session(wanted)
            self.request(type_url)
        elif session is not None and session.names != wanted:
            session.names = wanted
            self.request(type_url)

    def process(self, *, refuse: bool) -> None:
        """Read one response: take it, refuse it, or leave it where nothing of its type is watched."""
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
