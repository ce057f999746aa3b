"""A simulated control plane and Envoys around the relay's state machine, and the invariants that must hold.

It keeps its own record of all inputs and outputs. Versions are unique, so that each one identifies its delivery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kumadp.relay.actions import RelayAction, ResponseAccepted, ResponseRejected, SendDown, SendUp
from kumadp.relay.messages import SECRET, Request, Response, encode_response
from kumadp.relay.snapshot import RelaySnapshot
from kumadp.relay.state_machine import TRIAL_AFTER, RelayStateMachine
from tests.relay.harness import NODE
from tests.relay.simulated_envoy import NAMED, REFUSAL, TYPES, WITHHELD, Content, Delivery, Envoy, Session

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random


class Simulation:
    """Each method is an event, and checks the resulting actions."""

    def __init__(self, random: Random) -> None:
        self.random = random
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
        self.refused: set[Content] = set()
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
        delivery = Delivery(version, str(nonce), content, self.up or 0)
        self.deliveries[version] = self.last[type_url] = delivery
        self.check(self.machine.upstream_message(encode_response(type_url, version, listed, str(nonce))))
        if content in self.suspicious:
            return
        for envoy in self.served():
            session = envoy.sessions.get(type_url)
            assert not session or not self.subscribed(type_url, session) or session.in_flight is not None

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
        self.streams += 1
        envoy.stream, envoy.first_stream, envoy.connected = self.streams, False, True
        envoy.inbox, envoy.outbox = [], []
        for type_url, session in envoy.sessions.items():
            envoy.sessions[type_url] = Session(session.names, session.version, refused=session.refused)
            envoy.request(type_url)
        self.check(self.machine.down_opened(envoy.stream, envoy.epoch))

    def read(self, envoy: Envoy) -> None:
        """The relay reads one request."""
        request = envoy.outbox.pop(0)
        session = envoy.sessions[request.type_url]
        first, session.requested = session.requested is None, request.names
        if not first and session.in_flight and request.nonce == session.in_flight[0]:
            self.note_answer(envoy, session, session.in_flight[1], request)
        seen = len(session.received)
        if first:
            view = next((view for view in self.machine.types() if view.type_url == request.type_url), None)
            session.ahead = bool(request.version) and not (view and request.version in (view.accepted, view.latest))
        actions = self.machine.down_message(envoy.stream, request.encode())
        self.check(actions)
        if first and envoy.alive:
            self.check_first(request.type_url, session, session.received[seen:])

    def note_answer(self, envoy: Envoy, session: Session, version: str, request: Request) -> None:
        session.in_flight = None
        if version == WITHHELD:
            return
        delivery = self.deliveries[version]
        if request.error:
            delivery.refused = True
            self.suspicious.add(delivery.content)
            self.exits_since_accepted.pop(delivery.content, None)
            if len([envoy for envoy in self.envoys if envoy.connected]) == 1 and not delivery.accepted_by_envoy:
                self.refused.add(delivery.content)
        elif request.version == version:
            delivery.accepted_by_envoy = True
            self.exits_since_accepted.pop(delivery.content, None)
            if envoy.adopted or (envoy.first_stream and delivery.content not in session.refused):
                self.refused.discard(delivery.content)
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
            version = session.in_flight[1]
            if version == WITHHELD or self.accepted(type_url) == self.deliveries[version].content:
                continue
            content = self.deliveries[version].content
            self.suspicious.add(content)
            self.exits[content] = self.exits.get(content, 0) + 1
            self.exits_since_accepted[content] = self.exits_since_accepted.get(content, 0) + 1

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = self.machine.next_tick()
        actions = self.machine.tick(self.now)
        assert bool(actions) == (due is not None and due <= self.now)
        self.check(actions)

    def restart_relay(self, *, from_disk: bool) -> None:
        """Restart by re-execution, with all of the memory, or from disk, without secrets; Envoys reconnect."""
        memory = msgspec.msgpack.decode(msgspec.msgpack.encode(self.machine.snapshot()), type=RelaySnapshot)
        if from_disk:
            without_secrets = tuple(saved for saved in memory.types if saved.type_url != SECRET)
            memory = msgspec.structs.replace(memory, types=without_secrets)
            self.last.pop(SECRET, None)
            self.least.pop(SECRET, None)
            self.refused = {content for content in self.refused if content[0] != SECRET}
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

    # Invariants.

    def served(self) -> list[Envoy]:
        """Return the Envoys with a stream whose exit the relay has not noticed."""
        return [envoy for envoy in self.envoys if envoy.connected and (envoy.alive or "ended" in envoy.pending)]

    def subscribed(self, type_url: str, session: Session) -> bool:
        return session.requested is not None and (type_url not in NAMED or bool(session.requested))

    def accepted(self, type_url: str) -> Content | None:
        version = next((view.accepted for view in self.machine.types() if view.type_url == type_url), "")
        return self.deliveries[version].content if version else None

    def check(self, actions: Iterable[RelayAction]) -> None:
        for type_url in NAMED:
            if self.settled(type_url):
                least = self.least.get(type_url, set())
                self.least[type_url] = least & (self.requested_by_envoys(type_url) or least)
        for action in actions:
            match action:
                case SendUp(request):
                    self.check_up(request)
                case SendDown(stream, type_url, data):
                    self.check_down(stream, type_url, Response.parse(data))
                case ResponseAccepted(type_url, version):
                    assert self.deliveries[version].accepted_by_envoy
                    assert self.accepted(type_url) is not None
                case ResponseRejected(_, version, _, by_guard):
                    delivery = self.deliveries[version]
                    assert self.exits[delivery.content] >= 2 if by_guard else delivery.refused

    def check_up(self, request: Request) -> None:
        assert self.up is not None, "nothing is sent without a control plane"
        assert (request.node == b"") == self.node_sent
        self.node_sent = True
        type_url = request.type_url
        last = self.last.get(type_url)
        here = last if last and last.session == self.up else None
        assert request.nonce == (here.nonce if here else ""), "only the newest response is answered"
        changed = self.requested_names.get(type_url) != request.names
        if here is None or here.answered_up:
            assert changed, "nothing is sent twice"
            assert not request.error
        else:
            here.answered_up = True
            if not request.error:
                assert here.accepted_by_envoy or here.ignored, "no Envoy has accepted it"
                assert request.version == here.version or here.ignored
            elif request.error == REFUSAL:
                assert here.refused, "no Envoy has rejected it"
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
        session.in_flight = (response.nonce, response.version)
        if envoy.alive:
            envoy.inbox.append(response)
        if response.version == WITHHELD:
            assert (type_url, self.up) == (SECRET, None)
            assert self.accepted(SECRET) is None
            assert SECRET not in self.last or self.exits[self.last[SECRET].content] >= 2
            return
        delivery = self.deliveries[response.version]
        assert delivery.content == (type_url, frozenset(response.resources))
        good = self.accepted(type_url)
        if delivery.content != good:
            assert self.exits_since_accepted.get(delivery.content, 0) < 2, "Envoy has exited with it twice"
            if not session.received and good is not None:
                assert envoy.live or delivery.content not in self.refused, "a fresh Envoy gets the better response"
                assert envoy.live or self.exits_since_accepted.get(delivery.content, 0) < 1
        session.received.append(response.version)

    def check_first(self, type_url: str, session: Session, received: list[str]) -> None:
        """A fresh stream gets the remembered response at once, the newest unless it is suspicious."""
        last = self.last.get(type_url)
        if not self.subscribed(type_url, session) or last is None or self.keeps_own(session, last):
            return
        if self.accepted(type_url) is not None:
            assert received
        if last.content not in self.suspicious:
            assert received == [last.version]

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
        for step in range(200):
            while envoy.outbox:
                self.read(envoy)
            if envoy.inbox:
                envoy.process(refuse=False)
            elif not envoy.live:
                self.live(envoy)
            elif self.machine.next_tick() is not None:
                self.wait(TRIAL_AFTER)
            else:
                break
            assert step < 199, "it never reaches a steady state"
        self.check_always()
        for type_url, last in self.last.items():
            session = envoy.sessions[type_url]
            deadly = self.exits.get(last.content, 0) >= 2
            assert last.answered_up or last.session != self.up or deadly
            assert deadly or self.keeps_own(session, last) or session.received[-1] == last.version
