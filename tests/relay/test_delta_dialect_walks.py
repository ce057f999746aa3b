"""The dialect of one Delta stream beside a model of the control plane: what the relay is given is what that counts."""

from __future__ import annotations

from random import Random
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kumadp.relay.delta import Delta, Memory
from kumadp.relay.messages import Request, Response, encode_response, encode_status
from kumadp.relay.snapshot import TypeSnapshot
from tests.relay.harness import CLUSTER, ENDPOINTS, NODE, any_of
from tests.support.xds.delta import DeltaServer
from tests.support.xds.nodes import Node
from tests.support.xds.profiles import profile_of

KINDS = st.sampled_from([CLUSTER, ENDPOINTS])
SET = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"), max_size=3)
REJECTED = encode_status(13, "rejected")
Set = dict[str, bytes]


def resources(bodies: dict[str, str]) -> Set:
    return {name: any_of(name, body) for name, body in bodies.items()}


def set_of(response: Response) -> Set:
    return {name: bytes(resource.raw) for name, resource in response.by_name.items()}


class DialectWalk(RuleBasedStateMachine):
    """One rule is one message, or one change of what is served."""

    @initialize(seed=st.integers(0, 1000), version=st.sampled_from(["2.13", "3.0"]), served=SET, accepted=SET)
    def begin(self, seed: int, version: str, served: dict[str, str], accepted: dict[str, str]) -> None:
        self.random = Random(seed)
        self.version = version
        self.node = Node("default.node")
        self.names: dict[str, tuple[str, ...]] = {CLUSTER: (), ENDPOINTS: ("a", "b")}
        self.accepted: dict[str, Set] = {kind: resources(accepted) for kind in (CLUSTER, ENDPOINTS)}
        self.accepted[ENDPOINTS].pop("c", None)
        self.dropped: set[str] = set()
        self.change(served, served)
        self.open()

    def open(self) -> None:
        """Open a stream; both sides begin with what was accepted."""
        saved = tuple(
            TypeSnapshot(kind, self.names[kind], encode_response(kind, "v", accepted.values()))
            for kind, accepted in self.accepted.items()
        )
        self.dialect = Delta(Memory(saved), largest=1 << 20)
        self.server = DeltaServer(profile_of(self.version), lambda: self.node, self.random.shuffle)
        self.to_server: list[bytes] = []
        # Each response with what the control plane counts as sent after it.
        self.to_relay: list[tuple[Any, Set]] = []
        self.given: list[Response] = []
        self.answers: dict[str, bool] = {}
        # Types of which the last answer was a rejection: what was sent is not sent again.
        self.refused: set[str] = set()
        for kind in (CLUSTER, ENDPOINTS):
            self.to_server += self.dialect.encode(Request(kind, "v", NODE, self.names[kind]))

    @rule()
    def break_stream(self) -> None:
        self.open()

    @rule(clusters=SET, endpoints=SET)
    def change(self, clusters: dict[str, str], endpoints: dict[str, str]) -> None:
        self.node.serve({CLUSTER: resources(clusters), ENDPOINTS: resources(endpoints)})
        if hasattr(self, "server"):
            self.respond()

    def respond(self) -> None:
        for response, _rejected in list(self.server.respond()):
            kind = response.type_url
            served = self.node.resources[kind]
            known = {name: served[name] for name in self.server._subscriptions[kind].known}
            self.to_relay.append((response, known))

    @rule(count=st.integers(1, 4))
    def serve(self, count: int) -> None:
        """The control plane reads requests."""
        for _ in range(min(count, len(self.to_server))):
            request = discovery_pb2.DeltaDiscoveryRequest.FromString(self.to_server.pop(0))
            assert request.node.id == "node"
            if nonce := request.response_nonce:
                assert self.answers.pop(nonce) == request.HasField("error_detail"), "answered otherwise, or twice"
            self.server.requested(request)
            self.respond()

    @rule(count=st.integers(1, 4))
    def read(self, count: int) -> None:
        """The relay reads responses."""
        for _ in range(min(count, len(self.to_relay))):
            message, known = self.to_relay.pop(0)
            arrival = self.dialect.read(message.SerializeToString())
            answers = self.dialect.take(arrival)
            kind = message.type_url
            names = self.names[kind]
            wanted = {name: one for name, one in known.items() if not names or name in names}
            if arrival.response is None:
                # Nothing to do for Envoy: it has accepted just that.
                self.compare(kind, self.accepted[kind], wanted)
                assert len(answers) == 1
                self.answers[message.nonce] = False
            else:
                assert not answers
                self.compare(kind, set_of(arrival.response), wanted)
                assert arrival.response.nonce == message.nonce
                self.given.append(arrival.response)
            self.to_server += answers

    def compare(self, kind: str, held: Set, wanted: Set) -> None:
        """Compare sets, but for names that were dropped for a while: those are sent again."""
        dropped = self.dropped if kind == ENDPOINTS else set()
        names = set(self.names[kind] or (*held, *wanted)) - dropped
        assert {n: one for n, one in held.items() if n in names} == {n: one for n, one in wanted.items() if n in names}

    def teardown(self) -> None:
        """Once all is read and answered, we have what is served."""
        if not hasattr(self, "server"):
            return
        while self.to_server or self.to_relay or self.given:
            self.serve(count=10)
            self.read(count=10)
            for response in list(self.given):
                if response in self.given:
                    self.conclude(response, refuse=False)
        for kind, served in self.node.resources.items():
            if kind in self.refused:
                continue
            wanted = {name: one for name, one in served.items() if not self.names[kind] or name in self.names[kind]}
            held = self.accepted[kind]
            gone = self.dropped - served.keys() if kind == ENDPOINTS else set()
            names = set(self.names[kind] or held)
            assert {name: one for name, one in held.items() if name in names - gone} == wanted

    @rule(data=st.data(), refuse=st.booleans())
    def answer(self, data: st.DataObject, refuse: bool) -> None:
        """Envoy has answered a response; what it answers is not always the newest."""
        if not self.given:
            return
        self.conclude(self.given[data.draw(st.integers(0, len(self.given) - 1))], refuse=refuse)

    def conclude(self, response: Response, *, refuse: bool) -> None:
        self.given.remove(response)
        kind = response.type_url
        self.refused = self.refused | {kind} if refuse else self.refused - {kind}
        later = [other for other in self.given if other.type_url == kind and int(other.nonce) > int(response.nonce)]
        if not later and not refuse:
            self.accepted[kind] = set_of(response)
        self.given = [other for other in self.given if other.type_url != kind or other in later]
        error = REJECTED if refuse else b""
        messages = self.dialect.encode(Request(kind, response.version, b"", self.names[kind], response.nonce, error))
        nonces = {discovery_pb2.DeltaDiscoveryRequest.FromString(message).response_nonce for message in messages} - {""}
        assert nonces <= {response.nonce}, "an answer to another response"
        self.answers |= dict.fromkeys(nonces, refuse)
        self.to_server += messages

    @rule(names=st.sets(st.sampled_from("abc"), min_size=1))
    def subscribe(self, names: set[str]) -> None:
        """Envoy wants other endpoints."""
        self.dropped |= set(self.names[ENDPOINTS]) - names
        self.names[ENDPOINTS] = tuple(sorted(names))
        self.to_server += self.dialect.encode(Request(ENDPOINTS, "v", b"", self.names[ENDPOINTS]))

    @invariant()
    def server_has_the_names(self) -> None:
        """Once all is read, the control plane subscribes us to what we want."""
        if hasattr(self, "server") and not self.to_server:
            assert self.server._subscriptions[ENDPOINTS].names == set(self.names[ENDPOINTS])


TestDialect = DialectWalk.TestCase
TestDialect.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, report_multiple_bugs=False)
