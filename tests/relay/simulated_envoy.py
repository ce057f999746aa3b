"""A simulated Envoy, and the responses of a control plane, for the walks through the relay's state machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, SECRET, Request, Response, encode_status
from tests.relay.harness import NODE

if TYPE_CHECKING:
    from collections.abc import Iterable

TYPES = (CLUSTER, ENDPOINTS, SECRET, LISTENER)
NAMED = (ENDPOINTS, SECRET)
WITHHELD = "withheld"
# A resource whose body is this one is rejected by every Envoy.
BAD = "bad"

Content = tuple[str, frozenset[bytes]]


def is_bad(resource: bytes) -> bool:
    return BAD.encode() in resource


def rejection(names: Iterable[str] = ()) -> bytes:
    """Return the status with which Envoy rejects resources, that it names or not."""
    return encode_status(13, f"rejected: {', '.join(f'{name}: it is bad' for name in sorted(names)) or 'no'}")


@dataclass
class Delivery:
    """A response of the control plane, and the answers to it that reached the relay."""

    version: str
    nonce: str
    content: Content
    session: int
    refused: bool = False
    ignored: bool = False
    answered_up: bool = False
    rejected_up: bool = False


@dataclass
class Session:
    """One type on one Envoy's stream. ``requested``: names that the relay has read, ``names``: those of Envoy.
    ``requested_then``: those when the last response was sent.

    ``has`` is what Envoy runs, ``acknowledged`` what the relay knows of it, ``before`` what it knew on the last stream.

    ``ahead``: Envoy connected with a version that the relay does not know, and keeps it until there is a newer one.
    """

    names: tuple[str, ...]
    version: str = ""
    nonce: str = ""
    requested: tuple[str, ...] | None = None
    requested_then: tuple[str, ...] | None = None
    in_flight: Response | None = None
    received: list[str] = field(default_factory=list)
    refused: set[Content] = field(default_factory=set)
    ahead: bool = False
    has: dict[str, bytes] = field(default_factory=dict)
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    before: dict[str, bytes] = field(default_factory=dict)
    named_in_rejections: Counter[bytes] = field(default_factory=Counter)


@dataclass
class Envoy:
    """A process. ``pending``: the parts of its exit that the relay has not noticed yet.

    ``adopted``: older than the relay, which treats it as fresh unless it is reported LIVE. ``doubtful``: the relay has
    not read what it answered to the clusters that it got last.
    """

    epoch: int
    stream: int
    first_stream: bool = True
    adopted: bool = False
    doubtful: bool = False
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
            if type_url in NAMED:
                session.has = {name: session.has[name] for name in session.names if name in session.has}
            self.request(type_url)

    def process(self, *, refuse: bool, names: bool = False) -> None:
        """Read one response: accept it, reject it, or ignore it if nothing of its type is watched.

        It is rejected if it has a bad resource, or if ``refuse``: as a whole, or one resource; ``names``: by its name.
        """
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
        bad = {name for name, resource in response.by_name.items() if is_bad(bytes(resource.raw))}
        resources = {name: bytes(resource.raw) for name, resource in response.by_name.items()}
        if response.version == WITHHELD or bad or (refuse and content not in session.refused):
            session.refused.add(content)
            new = [name for name, raw in resources.items() if session.has.get(name) != raw]
            culprits = (bad or set(new[:1])) if names and response.version != WITHHELD else set()
            session.named_in_rejections.update(resources[name] for name in culprits)
            if bad and response.type_url not in NAMED:
                # Envoy applies the others.
                session.has = {name: raw for name, raw in resources.items() if name not in bad} | {
                    name: session.has[name] for name in bad if name in session.has
                }
            self.request(response.type_url, rejection(culprits))
            return
        if response.type_url in NAMED:
            session.has |= {name: raw for name, raw in resources.items() if name in session.names}
        else:
            session.has = resources
        session.version = response.version
        self.request(response.type_url)
