"""The relay's state machine between a control plane of either protocol and an Envoy that warms its clusters.

Unlike `tests.relay.simulation` it compares sets: what the control plane serves with what Envoy has at rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from envoy.service.discovery.v3 import discovery_pb2

from kumadp.relay.actions import QueryClusters, RelayAction, SendDown, SendUp
from kumadp.relay.cluster_report import ClusterReport
from kumadp.relay.delta import Delta, Memory
from kumadp.relay.dialect import Dialect, Sotw, XdsProtocol
from kumadp.relay.messages import Request, Response, encode_response, encode_status
from kumadp.relay.protobuf import field_bytes, field_text
from kumadp.relay.snapshot import RelaySnapshot
from kumadp.relay.state_machine import RelayStateMachine
from tests.relay.harness import CLUSTER, ENDPOINTS, LISTENER, NODE, SECRET, any_of
from tests.support.xds.delta import DeltaServer
from tests.support.xds.nodes import Node
from tests.support.xds.profiles import Profile, Service, profile_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from random import Random

Walked = TypeVar("Walked", bound="DeltaSimulation")
LARGEST = 1 << 20
# A body that Envoy rejects.
BAD = "bad"
# Seconds after which Envoy uses a cluster without its endpoints (``initial_fetch_timeout``).
FETCH_TIMEOUT = 15.0
MOST_REPEATED = 3
Set = dict[str, bytes]


@dataclass
class Session:
    """One type on Envoy's stream. ``pending``: a request waits, as clusters are paused; ``error`` goes with it."""

    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    pending: bool = False
    error: bytes = b""


@dataclass
class WarmingEnvoy:
    """An Envoy as measured (1.40): once it has started, it sends nothing about clusters while some warm.

    That is, from when the first one begins to warm until none does; on a new stream it does not request them either.
    Clusters need endpoints, but for those whose names begin with "s" (static); listeners whose names begin with "t"
    need the secret "k". It requests listeners once its first clusters are warm.
    """

    epoch: int
    stream: int
    sets: dict[str, Set] = field(default_factory=lambda: {CLUSTER: {}, ENDPOINTS: {}, LISTENER: {}, SECRET: {}})
    names_resources: bool = True
    """Whether its texts name what it rejects: those about clusters and listeners always do."""
    warming: set[str] = field(default_factory=set)
    stuck: Set = field(default_factory=dict)
    started: bool = False
    paused: bool = False
    gauge: int = 0
    has_clusters: bool = False
    sessions: dict[str, Session] = field(default_factory=dict)
    inbox: list[Response] = field(default_factory=list)
    outbox: list[Request] = field(default_factory=list)
    rejections: int = 0

    def subscribe(self, kind: str, names: Iterable[str] = ()) -> None:
        session = self.sessions.get(kind)
        wanted = tuple(sorted(names))
        if session is None:
            if kind in {CLUSTER, LISTENER} or wanted:
                self.sessions[kind] = Session(wanted)
                self._request(kind)
        elif session.names != wanted:
            session.names = wanted
            self._request(kind)

    def _request(self, kind: str, error: bytes = b"") -> None:
        session = self.sessions[kind]
        session.error = error or session.error
        session.pending = kind == CLUSTER and self.paused
        if not session.pending:
            self.outbox.append(Request(kind, session.version, NODE, session.names, session.nonce, session.error))
            session.error = b""

    def process(self) -> None:
        """Apply one response."""
        response = self.inbox.pop(0)
        kind, session = response.type_url, self.sessions[response.type_url]
        session.nonce = response.nonce
        resources = set_of(response)
        bad = {name for name, resource in resources.items() if is_bad(name, resource)}
        refused = bad
        if kind == CLUSTER:
            # One that is refused late stays in the warming list, and sent again it is no change.
            refused = bad - {name for name in self.stuck if self.stuck[name] == resources.get(name)}
            self.stuck = {name: resources[name] for name in bad}
        good = {name: resource for name, resource in resources.items() if name not in bad}
        if kind in {CLUSTER, LISTENER}:
            # What is rejected does not replace what there is.
            self._replace(kind, good | {name: self.sets[kind][name] for name in bad & self.sets[kind].keys()})
        else:
            self.sets[kind] |= {name: resource for name, resource in good.items() if name in session.names}
            # A rejection ends the wait too (EdsClusterImpl::onConfigUpdateFailed).
            self.warming -= resources.keys() if kind == ENDPOINTS else set()
        if refused:
            self.rejections += 1
            is_named = self.names_resources or kind in {CLUSTER, LISTENER}
            named = ", ".join(f"{name}: it is bad" for name in sorted(refused)) if is_named else "it is bad"
            self._request(kind, encode_status(13, f"Error adding/updating {named}"))
        else:
            session.version = response.version
            self._request(kind)
        self.has_clusters = self.has_clusters or kind == CLUSTER
        self._warmed()

    def _replace(self, kind: str, resources: Set) -> None:
        former, self.sets[kind] = self.sets[kind], resources
        if kind == LISTENER:
            self.subscribe(SECRET, {"k"} if any(name.startswith("t") for name in resources) else ())
            return
        dynamic = {name for name in resources if not name.startswith("s")}
        self.warming = (self.warming & dynamic) | {n for n in dynamic if former.get(n) != resources[n]}
        self._count()
        for name in self.sets[ENDPOINTS].keys() - dynamic:
            del self.sets[ENDPOINTS][name]
        self.subscribe(ENDPOINTS, dynamic)

    def _warmed(self) -> None:
        if not self.started and self.has_clusters and not self.warming:
            self.started = True
            self.subscribe(LISTENER)
        self._count()

    def _count(self) -> None:
        """Pause requests for clusters when the first one begins to warm, until none does."""
        before, self.gauge = self.gauge, len(self.stuck) + (len(self.warming) if self.started else 0)
        if self.started and not before and self.gauge:
            self.paused = True
        elif before and not self.gauge and self.paused:
            self.paused = False
            if self.sessions[CLUSTER].pending:
                self._request(CLUSTER)

    def give_up(self) -> None:
        """Use clusters without their endpoints."""
        self.warming.clear()
        self._warmed()

    def reconnect(self, stream: int) -> None:
        """Open another stream: names, versions and what was not sent are kept, nonces are not."""
        self.stream, self.inbox, self.outbox = stream, [], []
        former, self.sessions = self.sessions, {}
        for kind, session in former.items():
            self.sessions[kind] = Session(session.names, session.version, error=session.error)
            self._request(kind)


def set_of(response: Response) -> Set:
    return {name: bytes(resource.raw) for name, resource in response.by_name.items()}


def cluster_of(name: str, body: str) -> bytes:
    """A cluster, which has an ``eds_cluster_config`` unless its name begins with "s"."""
    if name.startswith("s"):
        return any_of(name, body)
    return field_bytes(2, field_text(1, name) + field_bytes(3, b"") + field_bytes(9, body.encode()))


def is_bad(name: str, resource: bytes) -> bool:
    return resource in {any_of(name, BAD), cluster_of(name, BAD)}


class SotwServer:
    """State of the world as go-control-plane serves it in ADS mode, without any stream or clock."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: dict[str, tuple[tuple[str, ...], str]] = {}
        self._sent: dict[str, str] = {}
        self._nonce = 0
        self._returned: dict[str, set[str]] = {}
        self._repeated: dict[str, int] = {}

    def requested(self, request: Request) -> None:
        sent = self._sent.get(request.type_url, "")
        if sent and request.nonce != sent:
            return
        if request.error:
            # Kuma sends what was rejected again every 5 s; that is often enough here.
            version = self._node.versions[request.type_url]
            self._repeated[version] = self._repeated.get(version, 0) + 1
            if self._repeated[version] > MOST_REPEATED:
                self._open[request.type_url] = (request.names, version)
                return
        self._open[request.type_url] = (request.names, request.version)

    def respond(self) -> Iterable[bytes]:
        for kind in (CLUSTER, ENDPOINTS, SECRET, LISTENER):
            if kind not in self._open:
                continue
            names, version = self._open[kind]
            resources = self._node.resources.get(kind, {})
            wanted = {name: one for name, one in resources.items() if not names or name in names}
            returned = self._returned.setdefault(kind, set())
            if self._node.versions.get(kind, "") == version and wanted.keys() <= returned:
                continue
            if names and not resources.keys() <= set(names):
                continue
            del self._open[kind]
            self._nonce += 1
            self._sent[kind] = str(self._nonce)
            returned.update(wanted)
            yield encode_response(kind, self._node.versions.get(kind, ""), wanted.values(), str(self._nonce))


class DeltaSimulation:
    """Each method is one event; messages wait in queues until `pump` moves one."""

    def __init__(self, random: Random, version: str = "3.0") -> None:
        self.random = random
        self.profile: Profile = profile_of(version)
        self.node = Node("default.node")
        self.node.serve({CLUSTER: {}, ENDPOINTS: {}, LISTENER: {}, SECRET: {}})
        self.machine = RelayStateMachine(NODE, queries=True)
        self.dialect: Dialect = Sotw()
        self.server: Any = None
        self.up_out: list[Any] = []
        self.up_in: list[bytes] = []
        self.now = 0.0
        self.streams = 0
        self.gives_up: float | None = None
        self.envoy: WarmingEnvoy | None = None
        self.epochs = 0
        self.late: set[str] = set()
        """Clusters that Envoy used without the endpoints that there were."""
        self.queried: list[tuple[int, str]] = []
        self.sent_down: list[tuple[str, tuple[str, ...]]] = []

    # The control plane.

    def serve(self, clusters: Set, endpoints: Set, listeners: Set, secrets: Set) -> None:
        """Serve these from now on; the snapshot is consistent: endpoints are those of its clusters."""
        self.node.serve({CLUSTER: clusters, ENDPOINTS: endpoints, LISTENER: listeners, SECRET: secrets})
        self.respond()

    def upgrade(self, version: str) -> None:
        self.disconnect()
        self.profile = profile_of(version)
        self.node.renew()

    def connect(self) -> None:
        """Open a stream in a protocol that the version serves."""
        self.up_out, self.up_in = [], []
        both = self.profile.sotw is self.profile.delta
        if self.random.random() < 0.5 if both else self.profile.sotw is Service.ANSWERED:
            self.dialect, self.server = Sotw(), SotwServer(self.node)
        else:
            self.dialect = Delta(Memory(self.machine.snapshot().types), largest=LARGEST)
            self.server = DeltaServer(self.profile, lambda: self.node, self.random.shuffle)
        self.execute(self.machine.upstream_opened())

    def disconnect(self) -> None:
        if self.server is not None:
            self.server, self.up_out, self.up_in = None, [], []
            self.execute(self.machine.upstream_closed())

    def respond(self) -> None:
        if self.server is None:
            return
        for response in list(self.server.respond()):
            self.up_in.append(response if isinstance(response, bytes) else response[0].SerializeToString())

    def read_up(self) -> None:
        """The control plane reads one request."""
        message = self.up_out.pop(0)
        if self.dialect.protocol is XdsProtocol.DELTA:
            request = discovery_pb2.DeltaDiscoveryRequest.FromString(message)
            assert request.HasField("node"), "Kuma 2.13 needs it in every request"
            self.server.requested(request)
        else:
            self.server.requested(Request.parse(message))
        self.respond()

    def read_response(self) -> None:
        """The relay reads one response."""
        arrival = self.dialect.read(self.up_in.pop(0))
        self.up_out += self.dialect.take(arrival)
        assert not arrival.refused
        if arrival.response is not None:
            self.execute(self.machine.upstream_message(arrival.response))

    # Envoy.

    def start(self) -> None:
        """Start an Envoy; one that runs is killed."""
        self.stop()
        self.streams += 1
        self.epochs += 1
        self.envoy = WarmingEnvoy(self.epochs, self.streams, names_resources=self.random.random() < 0.5)
        self.execute(self.machine.down_opened(self.streams, self.epochs))
        self.envoy.subscribe(CLUSTER)

    def stop(self) -> None:
        if self.envoy is not None:
            former, self.envoy = self.envoy, None
            self.execute(self.machine.envoy_ended(former.epoch, expected=True))
            self.execute(self.machine.down_closed(former.stream))

    def reconnect(self) -> None:
        """Break Envoy's stream."""
        if self.envoy is not None:
            self.execute(self.machine.down_closed(self.envoy.stream))
            self.streams += 1
            self.envoy.reconnect(self.streams)
            self.execute(self.machine.down_opened(self.streams, self.envoy.epoch))

    def live(self) -> None:
        """Report Envoy LIVE, which it is once it has listeners."""
        if self.envoy is not None and LISTENER in self.envoy.sessions and self.envoy.sessions[LISTENER].version:
            self.execute(self.machine.envoy_live(self.envoy.epoch, now=self.now))

    def read_down(self) -> None:
        """The relay reads one request of Envoy."""
        assert self.envoy is not None
        self.execute(self.machine.down_message(self.envoy.stream, self.envoy.outbox.pop(0).encode()))

    def restart_relay(self) -> None:
        """By re-execution, with all of the memory."""
        memory = msgspec.msgpack.decode(msgspec.msgpack.encode(self.machine.snapshot()), type=RelaySnapshot)
        self.server, self.up_out, self.up_in = None, [], []
        self.machine = RelayStateMachine(NODE, snapshot=memory, queries=True)
        if self.envoy is not None:
            self.live()
            self.streams += 1
            self.envoy.reconnect(self.streams)
            self.execute(self.machine.down_opened(self.streams, self.envoy.epoch))

    # The relay.

    def execute(self, actions: Iterable[RelayAction]) -> None:
        for action in actions:
            match action:
                case SendUp(request):
                    self.up_out += self.dialect.encode(request)
                case SendDown(stream, type_url, data=data):
                    assert self.envoy is not None
                    assert stream == self.envoy.stream
                    response = Response.parse(data)
                    self.sent_down.append((type_url, tuple(sorted(response.by_name))))
                    self.envoy.inbox.append(response)
                case QueryClusters(stream, nonce):
                    self.queried.append((stream, nonce))

    def answer_query(self) -> None:
        """Envoy's admin answers."""
        stream, nonce = self.queried.pop(0)
        if self.envoy is not None:
            warming = frozenset({*self.envoy.warming, *self.envoy.stuck})
            report = ClusterReport(self.envoy.sessions[CLUSTER].version, warming)
            self.execute(self.machine.clusters_reported(stream, nonce, report))

    def moves(self) -> list[Any]:
        """What can happen by itself now."""
        moves: list[Any] = []
        if self.up_out and self.server is not None:
            moves.append(self.read_up)
        if self.up_in and self.server is not None:
            moves.append(self.read_response)
        if self.envoy is not None and self.envoy.inbox:
            moves.append(self.envoy.process)
        if self.envoy is not None and self.envoy.outbox:
            moves.append(self.read_down)
        if self.queried:
            moves.append(self.answer_query)
        return moves

    def pump(self, count: int = 1) -> None:
        for _ in range(count):
            if moves := self.moves():
                self.random.choice(moves)()

    def is_due(self, now: float) -> bool:
        due = self.machine.next_tick()
        return due is not None and due < now

    def _gives_up_at(self) -> float:
        """Until when Envoy waits for endpoints."""
        self.gives_up = self.gives_up or self.now + FETCH_TIMEOUT
        return self.gives_up

    def settle(self) -> None:
        """Let everything happen that can, with an Envoy and a control plane."""
        if self.server is None:
            self.connect()
        if self.envoy is None:
            self.start()
        for _ in range(2000):
            if moves := self.moves():
                self.random.choice(moves)()
            elif self.envoy is not None and self.envoy.warming and not self.is_due(self._gives_up_at()):
                # Those that nobody has endpoints of any more Envoy waits for in vain.
                if self.dialect.protocol is XdsProtocol.DELTA:
                    # State of the world may leave a request unanswered that names fewer than there are.
                    self.late |= {
                        name
                        for name, resource in self.node.resources[ENDPOINTS].items()
                        if name in self.envoy.warming and not is_bad(name, resource)
                    }
                self.now, self.gives_up = self._gives_up_at(), None
                self.envoy.give_up()
            elif (due := self.machine.next_tick()) is not None:
                self.now = max(self.now, due)
                self.execute(self.machine.tick(self.now))
            else:
                break
        else:
            raise AssertionError("it never comes to rest")

    def compare(self, kind: str, has: Set, served: Set) -> None:
        """Compare sets; in the place of what is bad there is what was there before, or nothing."""
        bad = {name for name, resource in served.items() if is_bad(name, resource)}
        # Endpoints are those of clusters that Envoy has.
        bad |= served.keys() - self.node.resources[CLUSTER].keys() if kind == ENDPOINTS else set()
        if kind == ENDPOINTS and self.envoy is not None:
            bad |= served.keys() - self.envoy.sets[CLUSTER].keys()
        assert {name: one for name, one in has.items() if name not in bad} == {
            name: one for name, one in served.items() if name not in bad
        }, kind

    def assert_translated(self) -> None:
        """Envoy has what the control plane serves, and everything is acknowledged."""
        assert self.envoy is not None
        assert not self.envoy.warming, "clusters wait for endpoints"
        assert not self.envoy.stuck, "a rejected cluster stays in Envoy's warming list"
        served = self.node.resources
        for kind in (CLUSTER, LISTENER):
            self.compare(kind, self.envoy.sets[kind], served[kind])
        names = self.envoy.sessions[ENDPOINTS].names if ENDPOINTS in self.envoy.sessions else ()
        self.compare(
            ENDPOINTS, {n: one for n, one in self.envoy.sets[ENDPOINTS].items() if n in names}, served[ENDPOINTS]
        )
        if SECRET in self.envoy.sessions and self.envoy.sessions[SECRET].names:
            self.compare(SECRET, self.envoy.sets[SECRET], served[SECRET])
        assert self.late == set(), "clusters got no endpoints in time"
        # What Envoy does not want any more it does not answer either.
        wanted = {CLUSTER, LISTENER, *(kind for kind, session in self.envoy.sessions.items() if session.names)}
        assert [v.type_url for v in self.machine.types() if v.open and v.type_url in wanted] == [], "not answered"


def serve(simulation: DeltaSimulation, clusters: dict[str, str], endpoint: str, listeners: dict[str, str]) -> None:
    """Serve these; all clusters have one body of endpoints, and the secret follows it."""
    simulation.serve(
        {name: cluster_of(name, body) for name, body in clusters.items()},
        {name: any_of(name, endpoint) for name in clusters if name != "s"},
        {name: any_of(name, body) for name, body in listeners.items()},
        {"k": any_of("k", endpoint)},
    )


def some(names: str, bodies: Sequence[str], random: Random) -> dict[str, str]:
    """Return some of the names, each with one of the bodies."""
    return {name: random.choice(bodies) for name in random.sample(names, random.randint(0, len(names)))}


def walk(simulation: Walked, random: Random, events: Mapping[Callable[[Walked, Random], None], float]) -> None:
    """Start it, let random events happen, by their weights, and compare at rest."""
    simulation.start()
    for _ in range(random.choice([20, 60])):
        (act,) = random.choices(list(events), list(events.values()))
        act(simulation, random)
    simulation.settle()
    simulation.assert_translated()
