"""A simulated control plane and Envoys around the relay's state machine, and the invariants that must hold.

It keeps its own record of all inputs and outputs. Versions are unique, so that each one identifies its delivery.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import msgspec

from kumadp.relay.actions import RelayAction, ResponseAccepted, ResponseRejected, SendDown, SendUp
from kumadp.relay.cluster_order import AFTER_CLUSTERS
from kumadp.relay.jams import JAMMED, JAMMED_AFTER
from kumadp.relay.messages import CLUSTER, SECRET, Request, Response, encode_response
from kumadp.relay.snapshot import RelaySnapshot
from kumadp.relay.state_machine import TRIAL_AFTER, RelayStateMachine
from tests.relay.harness import NODE
from tests.relay.simulated_envoy import NAMED, TYPES, WITHHELD, Content, Delivery, Envoy, Session, is_bad

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random


class Simulation:
    """Each method is an event, and checks the resulting actions.

    ``arbitrary``: Envoys also reject resources that are good.
    """

    def __init__(self, random: Random, *, arbitrary: bool = True) -> None:
        self.random = random
        self.arbitrary = arbitrary
        self.machine = RelayStateMachine(NODE)
        self.now = 0.0
        self.up: int | None = None
        self.streams = 0
        self.sessions = 0
        self.nonces: dict[str, int] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.last: dict[str, Delivery] = {}
        self.requested_names: dict[str, tuple[str, ...]] = {}
        self.least: dict[str, set[str]] = {}
        self.envoys: list[Envoy] = []
        self.exits: dict[Content, int] = {}
        self.exits_since_accepted: dict[Content, int] = {}
        self.sent_up: dict[str, set[bytes]] = {}
        self.refused: set[bytes] = set()
        self.suspicious: set[Content] = set()
        self.node_sent = False
        self.remembered: set[str] = set()

    # The control plane.

    def connect(self) -> None:
        self.sessions += 1
        self.up, self.nonces, self.requested_names, self.node_sent = self.sessions, {}, {}, False
        self.check(self.machine.upstream_opened())
        assert set(self.requested_names) == {view.type_url for view in self.machine.types()}

    def disconnect(self) -> None:
        self.up = None
        self.check(self.machine.upstream_closed())

    def respond(self, type_url: str, resources: Iterable[bytes]) -> None:
        listed = list(resources)
        self.random.shuffle(listed)
        nonce = self.nonces[type_url] = self.nonces.get(type_url, 0) + 1
        version = f"{type_url[-3:]}-{len(self.deliveries)}"
        content = (type_url, frozenset(listed))
        self.sent_up.setdefault(type_url, set()).update(listed)
        delivery = Delivery(version, str(nonce), content, self.up or 0)
        self.deliveries[version] = self.last[type_url] = delivery
        self.check(self.machine.upstream_message(encode_response(type_url, version, listed, str(nonce))))
        if self.is_suspicious(content):
            return
        for envoy in self.served():
            session, clusters = envoy.sessions.get(type_url), envoy.sessions.get(CLUSTER)
            if type_url in AFTER_CLUSTERS and clusters and clusters.in_flight:
                continue
            if session and self.subscribed(type_url, session) and session.in_flight is None:
                assert self.has_all(session, delivery), "there is news for it"

    # The Envoys.

    def start(self, epoch: int) -> Envoy:
        self.streams += 1
        envoy = Envoy(epoch, self.streams)
        self.envoys.append(envoy)
        self.check(self.machine.down_opened(envoy.stream, epoch))
        return envoy

    def reconnect(self, envoy: Envoy) -> None:
        """Break its stream and open another one: Envoy keeps names and versions, but not nonces."""
        if envoy.connected:
            self.check(self.machine.down_closed(envoy.stream))
        clusters = envoy.sessions.get(CLUSTER)
        if clusters is not None and clusters.requested is not None:
            envoy.doubtful = clusters.in_flight is not None
        self.streams += 1
        envoy.stream, envoy.first_stream, envoy.connected = self.streams, False, True
        envoy.inbox, envoy.outbox = [], []
        for type_url, session in envoy.sessions.items():
            before = session.acknowledged or session.before
            envoy.sessions[type_url] = Session(
                session.names, session.version, refused=session.refused, has=session.has, before=before
            )
            envoy.request(type_url)
        self.check(self.machine.down_opened(envoy.stream, envoy.epoch))

    def read(self, envoy: Envoy) -> None:
        """The relay reads one request."""
        request = envoy.outbox.pop(0)
        session = envoy.sessions[request.type_url]
        first, session.requested = session.requested is None, request.names
        session.requested_then = tuple(name for name in session.requested_then or () if name in request.names)
        if type_url_named := request.type_url in NAMED:
            session.acknowledged = {n: raw for n, raw in session.acknowledged.items() if n in request.names}
        if not first and session.in_flight and request.nonce == session.in_flight.nonce:
            self.note_answer(session, session.in_flight, request, named=type_url_named)
        seen = len(session.received)
        if first:
            view = next((view for view in self.machine.types() if view.type_url == request.type_url), None)
            session.ahead = bool(request.version) and not (view and request.version in (view.accepted, view.latest))
        actions = self.machine.down_message(envoy.stream, request.encode())
        self.check(actions)
        if first and envoy.alive:
            self.check_first(envoy, request.type_url, session.received[seen:])

    def note_answer(self, session: Session, response: Response, request: Request, *, named: bool) -> None:
        session.in_flight = None
        if response.version == WITHHELD:
            return
        delivery = self.delivery(response.version)
        if request.error:
            delivery.refused = True
            self.refused.update(response.resources)
            self.suspicious.add(delivery.content)
            self.exits_since_accepted.pop(delivery.content, None)
        elif request.version == response.version:
            resources = {name: bytes(resource.raw) for name, resource in response.by_name.items()}
            if named:
                session.acknowledged |= {name: raw for name, raw in resources.items() if name in request.names}
            else:
                session.acknowledged = resources
            self.exits_since_accepted.pop(delivery.content, None)
        else:
            delivery.ignored = True

    def live(self, envoy: Envoy) -> None:
        envoy.live = True
        self.check(self.machine.envoy_live(envoy.epoch, now=self.now))

    def die(self, envoy: Envoy, *, expected: bool, closed_first: bool) -> None:
        envoy.alive, envoy.expected = False, expected
        envoy.pending = ["closed", "ended"] if closed_first else ["ended", "closed"]
        if not envoy.connected:
            envoy.pending.remove("closed")

    def notice(self, envoy: Envoy) -> None:
        """The relay notices the exit of the process or the end of its stream, of which it has read all before."""
        what = envoy.pending.pop(0)
        if what == "closed":
            while envoy.outbox:
                self.read(envoy)
            envoy.connected = False
        if not envoy.pending:
            self.envoys.remove(envoy)
        if what == "closed":
            actions = self.machine.down_closed(envoy.stream)
        else:
            envoy.live = False
            actions = self.machine.envoy_ended(envoy.epoch, expected=envoy.expected)
        if not envoy.pending and not envoy.expected:
            self.count_exit(envoy)
        self.check(actions)

    def count_exit(self, envoy: Envoy) -> None:
        for type_url, session in envoy.sessions.items():
            if session.in_flight is None or not self.subscribed(type_url, session):
                continue
            response = session.in_flight
            if response.version == WITHHELD or self.accepted(type_url) == self.delivery(response.version).content:
                continue
            content = self.delivery(response.version).content
            self.suspicious.add(content)
            self.exits[content] = self.exits.get(content, 0) + 1
            if frozenset(response.resources) == content[1]:
                self.exits_since_accepted[content] = self.exits_since_accepted.get(content, 0) + 1

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.check(self.machine.tick(self.now))

    def restart_relay(self, *, from_disk: bool) -> None:
        """Restart by re-execution, with all of the memory, or from disk, without secrets; Envoys reconnect."""
        memory = msgspec.msgpack.decode(msgspec.msgpack.encode(self.machine.snapshot()), type=RelaySnapshot)
        if from_disk:
            without_secrets = tuple(saved for saved in memory.types if saved.type_url != SECRET)
            memory = msgspec.structs.replace(memory, types=without_secrets)
            self.last.pop(SECRET, None)
            self.least.pop(SECRET, None)
            for content in [content for content in self.exits_since_accepted if content[0] == SECRET]:
                del self.exits_since_accepted[content]
        self.up = None
        self.remembered = set(self.deliveries)
        self.machine = RelayStateMachine(NODE, snapshot=memory, withhold_secrets=from_disk)
        for envoy in [envoy for envoy in self.envoys if not envoy.alive]:
            self.envoys.remove(envoy)
        for envoy in self.envoys:
            envoy.connected = False
            envoy.adopted = not envoy.live
            if envoy.live:
                self.check(self.machine.envoy_live(envoy.epoch, now=self.now))
            self.reconnect(envoy)
            last = self.last.get(CLUSTER)
            if last is not None and last.content != self.accepted(CLUSTER):
                envoy.doubtful = True

    # Invariants.

    def served(self) -> list[Envoy]:
        """Return the Envoys with a stream whose exit the relay has not noticed."""
        return [envoy for envoy in self.envoys if envoy.connected and (envoy.alive or "ended" in envoy.pending)]

    def subscribed(self, type_url: str, session: Session) -> bool:
        return session.requested is not None and (type_url not in NAMED or bool(session.requested))

    def delivery(self, version: str) -> Delivery:
        """Return the response that a version belongs to, of which Envoy may get a part."""
        return self.deliveries[version.partition("+")[0]]

    def accepted(self, type_url: str) -> Content | None:
        saved = next((saved for saved in self.machine.snapshot().types if saved.type_url == type_url), None)
        return (type_url, frozenset(Response.parse(saved.accepted).resources)) if saved and saved.accepted else None

    def is_suspicious(self, content: Content) -> bool:
        return content in self.suspicious or bool(content[1] & self.refused)

    def has_all(self, session: Session, delivery: Delivery, *, sent: bool = False) -> bool:
        """Return True if Envoy has acknowledged all of a response that it requests, or requested (``sent``)."""
        requested = set(session.requested or ()).intersection(
            session.requested_then or () if sent else session.requested or ()
        )
        type_url, resources = delivery.content
        if type_url in NAMED:
            named = Response.parse(encode_response(type_url, "", resources)).by_name
            wanted = {bytes(named[name].raw) for name in requested if name in named}
        else:
            wanted = set(resources)
        return wanted <= set(session.acknowledged.values())

    def check(self, actions: Iterable[RelayAction]) -> None:
        for type_url in NAMED:
            if self.settled(type_url):
                least = self.least.get(type_url, set())
                self.least[type_url] = least & (self.requested_by_envoys(type_url) or least)
        for action in actions:
            match action:
                case SendUp(request):
                    self.check_up(request)
                case SendDown(stream, type_url, data=data):
                    self.check_down(stream, type_url, Response.parse(data))
                case ResponseAccepted(type_url, version):
                    assert self.delivery(version).content[0] == type_url
                    assert self.accepted(type_url) is not None
                case ResponseRejected(_, version, reason, by_guard) if reason != JAMMED:
                    delivery = self.delivery(version)
                    assert self.exits[delivery.content] >= 2 if by_guard else self.is_suspicious(delivery.content)
        if self.machine.next_tick() == -inf:
            self.check(self.machine.tick(self.now))

    def check_up(self, request: Request) -> None:
        assert self.up is not None, "nothing is sent without a control plane"
        assert (request.node == b"") == self.node_sent
        self.node_sent = True
        type_url = request.type_url
        last = self.last.get(type_url)
        here = last if last and last.session == self.up else None
        assert request.nonce == (here.nonce if here else ""), "only the newest response is answered"
        changed = self.requested_names.get(type_url) != request.names
        if here is not None and here.rejected_up and request.version == here.version and not changed:
            # An Envoy has accepted it since.
            here.rejected_up = False
            sessions = [envoy.sessions.get(type_url) for envoy in self.envoys if envoy.connected]
            assert any(self.has_all(s, here) or self.has_all(s, here, sent=True) for s in sessions if s)
            assert not request.error
        elif here is None or here.answered_up:
            assert changed, "nothing is sent twice"
            assert not request.error
        else:
            here.answered_up = True
            here.rejected_up = bool(request.error)
            if not request.error:
                sessions = [envoy.sessions.get(type_url) for envoy in self.envoys if envoy.connected]
                has_all = any(self.has_all(s, here) or self.has_all(s, here, sent=True) for s in sessions if s)
                assert has_all or here.ignored, "no Envoy has accepted it"
                assert request.version == here.version or here.ignored
            elif b"rejected" in request.error or JAMMED.encode() in request.error:
                assert self.is_suspicious(here.content), "no Envoy has rejected it"
            else:
                assert self.exits[here.content] >= 2, "Envoy has not exited with it twice"
        self.check_names(type_url, request.names)
        self.requested_names[type_url] = request.names

    def check_names(self, type_url: str, names: tuple[str, ...]) -> None:
        """Names are never fewer than before; no names mean all."""
        if type_url in NAMED:
            assert names, "never all of a named type"
            assert self.least.get(type_url, set()) <= set(names)
            self.least[type_url] = set(names)
        else:
            assert not names

    def check_down(self, stream: int, type_url: str, response: Response) -> None:
        envoy = next(envoy for envoy in self.envoys if envoy.stream == stream)
        session = envoy.sessions[type_url]
        assert envoy.connected
        assert self.subscribed(type_url, session)
        assert session.in_flight is None, "one at a time"
        session.in_flight, session.requested_then = response, session.requested
        if envoy.alive:
            envoy.inbox.append(response)
        if response.version == WITHHELD:
            assert (type_url, self.up) == (SECRET, None)
            assert self.accepted(SECRET) is None
            assert SECRET not in self.last or self.exits[self.last[SECRET].content] >= 2
            return
        resources = frozenset(response.resources)
        assert resources <= self.sent_up[type_url]
        # After a lost answer a rejection may be about another resource of the name: it is tried once more.
        most = 1 if type_url == CLUSTER and not envoy.first_stream else 0
        assert not any(session.named_in_rejections[each] > most for each in resources), "it was rejected by its name"
        if type_url in NAMED:
            assert resources, "there is nothing in it"
        delivery = self.delivery(response.version)
        accepted = self.accepted(type_url)
        if accepted is None or not resources <= accepted[1]:
            assert self.exits_since_accepted.get(delivery.content, 0) < 2, "Envoy has exited with it twice"
            if not session.received and accepted is not None and resources == delivery.content[1]:
                assert envoy.live or self.exits_since_accepted.get(delivery.content, 0) < 1
        session.received.append(response.version)

    def check_first(self, envoy: Envoy, type_url: str, received: list[str]) -> None:
        """A fresh stream gets the remembered response at once, the newest unless it is suspicious.

        If an answer was lost, clusters are those that it had accepted, and what leads to others waits.
        """
        session, clusters, last = envoy.sessions[type_url], envoy.sessions.get(CLUSTER), self.last.get(type_url)
        if envoy.doubtful and clusters is not None and clusters.in_flight is not None:
            if type_url in AFTER_CLUSTERS:
                return
            if type_url == CLUSTER and not self.is_suspicious(self.last[CLUSTER].content):
                accepted, latest = (self.accepted(CLUSTER) or (CLUSTER, frozenset()))[1], self.last[CLUSTER].content[1]
                own = set(session.before.values()) if session.version else set()
                assert accepted & latest & own <= set(clusters.in_flight.resources)
                return
        if not self.subscribed(type_url, session) or last is None or self.keeps_own(session, last):
            return
        if type_url in NAMED:
            assert self.is_suspicious(last.content) or session.in_flight or self.has_all(session, last)
            return
        if self.accepted(type_url) is not None:
            assert received
        if not self.is_suspicious(last.content):
            assert received == [last.version] or self.machine.snapshot().types[0].held

    def keeps_own(self, session: Session, last: Delivery) -> bool:
        """Return True if Envoy may keep its version, as the relay only has the memory of a previous run."""
        view = next(view for view in self.machine.types() if view.type_url == last.content[0])
        return session.ahead and bool({last.version, view.accepted} & self.remembered)

    def check_always(self) -> None:
        """The names of all Envoys are requested, unless a response is unanswered: the answer will carry them."""
        if self.up is None:
            return
        for type_url, names in self.requested_names.items():
            last = self.last.get(type_url)
            if last and last.session == self.up and not last.answered_up:
                continue
            if any((session := envoy.sessions.get(type_url)) and session.in_flight for envoy in self.served()):
                continue
            requested_by_envoys = self.requested_by_envoys(type_url)
            assert requested_by_envoys <= set(names) or not names
            if self.settled(type_url) and requested_by_envoys:
                assert requested_by_envoys == set(names)

    def settled(self, type_url: str) -> bool:
        """Return True if all Envoys are LIVE and have requested the type on their stream: names may be dropped."""
        served = self.served()
        requested = all((session := envoy.sessions.get(type_url)) and session.requested is not None for envoy in served)
        departed = [envoy for envoy in self.envoys if not envoy.connected]
        return bool(served) and not departed and requested and all(envoy.live for envoy in served)

    def requested_by_envoys(self, type_url: str) -> set[str]:
        """Return the names that running Envoys have requested, as read by the relay."""
        sessions = [session for envoy in self.served() if (session := envoy.sessions.get(type_url))]
        return {name for session in sessions for name in session.requested or ()}

    def settle(self) -> None:
        """Reach a steady state: one connection, one Envoy that accepts everything; then nothing is left waiting."""
        while waiting := [envoy for envoy in self.envoys if envoy.pending]:
            self.notice(waiting[0])
        if self.up is None:
            self.connect()
        for extra in self.envoys[:-1]:
            self.die(extra, expected=True, closed_first=False)
            self.notice(extra)
            self.notice(extra)
        envoy = self.envoys[-1] if self.envoys else self.start(0)
        for type_url in TYPES:
            if type_url not in envoy.sessions:
                envoy.sessions[type_url] = Session(())
            session = envoy.sessions[type_url]
            session.names = ("a", "b") if type_url in NAMED else ()
            envoy.request(type_url)
        for step in range(500):
            while envoy.outbox:
                self.read(envoy)
            if envoy.inbox:
                envoy.process(refuse=False)
            elif not envoy.live:
                self.live(envoy)
            elif self.machine.next_tick() is not None:
                self.wait(max(TRIAL_AFTER, JAMMED_AFTER) + 2)
            else:
                break
            assert step < 499, "it never reaches a steady state"
        self.check_always()
        for type_url, last in self.last.items():
            session = envoy.sessions[type_url]
            deadly = self.exits.get(last.content, 0) >= 2
            assert last.answered_up or last.session != self.up or deadly
            # One that an Envoy exited with once may wait for another Envoy.
            if not self.exits.get(last.content) and not self.keeps_own(session, last):
                self.check_settled(type_url, session, last)

    def check_settled(self, type_url: str, session: Session, last: Delivery) -> None:
        """All is with Envoy that it accepts, and nothing else; the control plane knows what is not."""
        view = next(view for view in self.machine.types() if view.type_url == type_url)
        resources = Response.parse(encode_response(type_url, "", last.content[1])).by_name
        expected = {name: bytes(resource.raw) for name, resource in resources.items()}
        if type_url in NAMED:
            expected = {name: raw for name, raw in expected.items() if name in session.names}
            extra: set[str] = set()
        else:
            extra = session.has.keys() - expected.keys()
        assert not extra or self.arbitrary, "it was removed"
        missing = {name for name, raw in expected.items() if session.has.get(name) != raw}
        if not view.withheld:
            assert not missing, "it is not withheld"
        elif self.arbitrary:
            assert {expected[name] for name in missing} <= self.refused
        else:
            assert missing == {name for name, raw in expected.items() if is_bad(raw)}
        assert not any(is_bad(raw) for raw in session.has.values())
        if not self.arbitrary and last.session == self.up:
            # Names that were not requested when it was answered do not count.
            has_bad = any(map(is_bad, last.content[1]))
            assert last.rejected_up == has_bad or (type_url in NAMED and has_bad)
