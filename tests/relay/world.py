"""A control plane and Envoys around the relay's state machine, and what must hold whatever they do.

The bookkeeping is its own: it knows what went in and came out. Versions are unique, so each tells its delivery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kumadp.relay.actions import RelayAction, ResponseAccepted, ResponseRejected, SendDown, SendUp
from kumadp.relay.messages import SECRET, Request, Response, encode_response
from kumadp.relay.snapshot import RelaySnapshot
from kumadp.relay.state_machine import TRIAL_AFTER, RelayStateMachine
from tests.relay.harness import NODE
from tests.relay.players import NAMED, REFUSAL, TYPES, WITHHELD, Content, Delivery, Envoy, Session

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random


class World:
    """All of it; methods are what can happen, and each checks what came out."""

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
        self.told: dict[str, tuple[str, ...]] = {}
        self.least: dict[str, set[str]] = {}
        self.envoys: list[Envoy] = []
        self.ends: dict[Content, int] = {}
        self.ends_since_taken: dict[Content, int] = {}
        self.refused: set[Content] = set()
        self.doubtful: set[Content] = set()
        self.introduced = False
        self.remembered: set[str] = set()

    # The control plane.

    def connect(self) -> None:
        self.sessions += 1
        self.up, self.nonces, self.told, self.introduced = self.sessions, {}, {}, False
        self.check(self.machine.upstream_opened())
        assert set(self.told) == {view.type_url for view in self.machine.types()}

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
        if content in self.doubtful:
            return
        for envoy in self.served():
            session = envoy.sessions.get(type_url)
            assert not session or not self.subscribed(type_url, session) or session.under_way is not None

    # The Envoys.

    def start(self, epoch: int) -> Envoy:
        self.streams += 1
        envoy = Envoy(epoch, self.streams)
        self.envoys.append(envoy)
        self.check(self.machine.down_opened(envoy.stream, epoch))
        return envoy

    def reconnect(self, envoy: Envoy) -> None:
        """Its stream breaks, then it opens another one: it keeps names and versions, not nonces."""
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
        first, session.asked = session.asked is None, request.names
        if not first and session.under_way and request.nonce == session.under_way[0]:
            self.answered(envoy, session, session.under_way[1], request)
        seen = len(session.given)
        if first:
            view = next((one for one in self.machine.types() if one.type_url == request.type_url), None)
            session.ahead = bool(request.version) and not (view and request.version in (view.accepted, view.latest))
        actions = self.machine.down_message(envoy.stream, request.encode())
        self.check(actions)
        if first and envoy.alive:
            self.check_first(request.type_url, session, session.given[seen:])

    def answered(self, envoy: Envoy, session: Session, version: str, request: Request) -> None:
        session.under_way = None
        if version == WITHHELD:
            return
        delivery = self.deliveries[version]
        if request.error:
            delivery.refused = True
            self.doubtful.add(delivery.content)
            self.ends_since_taken.pop(delivery.content, None)
            if len([one for one in self.envoys if one.connected]) == 1 and not delivery.taken:
                self.refused.add(delivery.content)
        elif request.version == version:
            delivery.taken = True
            self.ends_since_taken.pop(delivery.content, None)
            if envoy.adopted or (envoy.first_stream and delivery.content not in session.refused):
                self.refused.discard(delivery.content)
        else:
            delivery.left = True

    def live(self, envoy: Envoy) -> None:
        envoy.live = True
        self.check(self.machine.envoy_live(envoy.epoch, now=self.now))

    def die(self, envoy: Envoy, *, expected: bool, closed_first: bool) -> None:
        envoy.alive, envoy.expected = False, expected
        envoy.pending = ["closed", "ended"] if closed_first else ["ended", "closed"]
        if not envoy.connected:
            envoy.pending.remove("closed")

    def notice(self, envoy: Envoy) -> None:
        """The relay learns of one half of an end; it has read all of a stream before it sees it closed."""
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
            self.count_end(envoy)
        self.check(actions)

    def count_end(self, envoy: Envoy) -> None:
        for type_url, session in envoy.sessions.items():
            if session.under_way is None or not self.subscribed(type_url, session):
                continue
            version = session.under_way[1]
            if version == WITHHELD or self.accepted(type_url) == self.deliveries[version].content:
                continue
            content = self.deliveries[version].content
            self.doubtful.add(content)
            self.ends[content] = self.ends.get(content, 0) + 1
            self.ends_since_taken[content] = self.ends_since_taken.get(content, 0) + 1

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = self.machine.next_tick()
        actions = self.machine.tick(self.now)
        assert bool(actions) == (due is not None and due <= self.now)
        self.check(actions)

    def restart_relay(self, *, from_disk: bool) -> None:
        """By re-exec, with all of memory, or from disk, without secrets; Envoys find it again by themselves."""
        memory = msgspec.msgpack.decode(msgspec.msgpack.encode(self.machine.snapshot()), type=RelaySnapshot)
        if from_disk:
            kept = tuple(one for one in memory.types if one.type_url != SECRET)
            memory = msgspec.structs.replace(memory, types=kept)
            self.last.pop(SECRET, None)
            self.least.pop(SECRET, None)
            self.refused = {content for content in self.refused if content[0] != SECRET}
            for content in [one for one in self.ends_since_taken if one[0] == SECRET]:
                del self.ends_since_taken[content]
        self.up = None
        self.remembered = set(self.deliveries)
        self.machine = RelayStateMachine(NODE, snapshot=memory, withhold_secrets=from_disk)
        for envoy in [one for one in self.envoys if not one.alive]:
            self.envoys.remove(envoy)
        for envoy in self.envoys:
            envoy.connected = False
            envoy.adopted = not envoy.live
            if envoy.live:
                self.check(self.machine.envoy_live(envoy.epoch, now=self.now))
            self.reconnect(envoy)

    # What must hold.

    def served(self) -> list[Envoy]:
        """Those that the relay has a stream of, and of whose end it has not heard."""
        return [one for one in self.envoys if one.connected and (one.alive or "ended" in one.pending)]

    def subscribed(self, type_url: str, session: Session) -> bool:
        return session.asked is not None and (type_url not in NAMED or bool(session.asked))

    def accepted(self, type_url: str) -> Content | None:
        version = next((view.accepted for view in self.machine.types() if view.type_url == type_url), "")
        return self.deliveries[version].content if version else None

    def check(self, actions: Iterable[RelayAction]) -> None:
        for type_url in NAMED:
            if self.spoken(type_url):
                least = self.least.get(type_url, set())
                self.least[type_url] = least & (self.wanted(type_url) or least)
        for action in actions:
            match action:
                case SendUp(data):
                    self.check_up(Request.parse(data))
                case SendDown(stream, type_url, data):
                    self.check_down(stream, type_url, Response.parse(data))
                case ResponseAccepted(type_url, version):
                    assert self.deliveries[version].taken
                    assert self.accepted(type_url) is not None
                case ResponseRejected(_, version, _, by_guard):
                    delivery = self.deliveries[version]
                    assert self.ends[delivery.content] >= 2 if by_guard else delivery.refused

    def check_up(self, request: Request) -> None:
        assert self.up is not None, "nothing is said without a control plane"
        assert (request.node == b"") == self.introduced
        self.introduced = True
        type_url = request.type_url
        last = self.last.get(type_url)
        here = last if last and last.session == self.up else None
        assert request.nonce == (here.nonce if here else ""), "only the newest response is spoken of"
        changed = self.told.get(type_url) != request.names
        if here is None or here.answered_up:
            assert changed, "nothing is said twice"
            assert not request.error
        else:
            here.answered_up = True
            if not request.error:
                assert here.taken or here.left, "no Envoy has taken it"
                assert request.version == here.version or here.left
            elif request.error == REFUSAL:
                assert here.refused, "no Envoy has refused it"
            else:
                assert self.ends[here.content] >= 2, "it was not twice the end of an Envoy"
        self.check_names(type_url, request.names)
        self.told[type_url] = request.names

    def check_names(self, type_url: str, names: tuple[str, ...]) -> None:
        """Never fewer than before; no names at all is all there are."""
        if type_url in NAMED:
            assert names, "never all of a named type"
            assert self.least.get(type_url, set()) <= set(names)
            self.least[type_url] = set(names)
        else:
            assert not names

    def check_down(self, stream: int, type_url: str, response: Response) -> None:
        envoy = next(one for one in self.envoys if one.stream == stream)
        session = envoy.sessions[type_url]
        assert envoy.connected
        assert self.subscribed(type_url, session)
        assert session.under_way is None, "one at a time"
        session.under_way = (response.nonce, response.version)
        if envoy.alive:
            envoy.inbox.append(response)
        if response.version == WITHHELD:
            assert (type_url, self.up) == (SECRET, None)
            assert self.accepted(SECRET) is None
            assert SECRET not in self.last or self.ends[self.last[SECRET].content] >= 2
            return
        delivery = self.deliveries[response.version]
        assert delivery.content == (type_url, frozenset(response.resources))
        good = self.accepted(type_url)
        if delivery.content != good:
            assert self.ends_since_taken.get(delivery.content, 0) < 2, "Envoys have twice ended with it"
            if not session.given and good is not None:
                assert envoy.live or delivery.content not in self.refused, "there is something better for a fresh Envoy"
                assert envoy.live or self.ends_since_taken.get(delivery.content, 0) < 1
        session.given.append(response.version)

    def check_first(self, type_url: str, session: Session, given: list[str]) -> None:
        """A fresh stream is given what memory holds at once, the newest unless there is something against it."""
        last = self.last.get(type_url)
        if not self.subscribed(type_url, session) or last is None or self.kept(session, last):
            return
        if self.accepted(type_url) is not None:
            assert given
        if last.content not in self.doubtful:
            assert given == [last.version]

    def kept(self, session: Session, last: Delivery) -> bool:
        """Whether the Envoy may keep what it has, as the relay has little but what it remembers from an earlier run."""
        view = next(view for view in self.machine.types() if view.type_url == last.content[0])
        return session.ahead and bool({last.version, view.accepted} & self.remembered)

    def check_always(self) -> None:
        """Names of all Envoys are known above, unless a response is not answered: the answer will carry them."""
        if self.up is None:
            return
        for type_url, names in self.told.items():
            last = self.last.get(type_url)
            if last and last.session == self.up and not last.answered_up:
                continue
            if any((session := one.sessions.get(type_url)) and session.under_way for one in self.served()):
                continue
            wanted = self.wanted(type_url)
            assert wanted <= set(names) or not names
            if self.spoken(type_url) and wanted:
                assert wanted == set(names)

    def spoken(self, type_url: str) -> bool:
        """Whether all Envoys are LIVE and have asked for the type on the stream they have: fewer names may be told."""
        served = self.served()
        asked = all((session := one.sessions.get(type_url)) and session.asked is not None for one in served)
        departed = [one for one in self.envoys if not one.connected]
        return bool(served) and not departed and asked and all(one.live for one in served)

    def wanted(self, type_url: str) -> set[str]:
        """What living Envoys have asked for, as the relay has read it."""
        sessions = [session for envoy in self.served() if (session := envoy.sessions.get(type_url))]
        return {name for session in sessions for name in session.asked or ()}

    def settle(self) -> None:
        """Let everything calm down: one connection, one Envoy that takes everything; nobody waits for ever then."""
        while waiting := [one for one in self.envoys if one.pending]:
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
            assert step < 199, "it never calms down"
        self.check_always()
        for type_url, last in self.last.items():
            session = envoy.sessions[type_url]
            deadly = self.ends.get(last.content, 0) >= 2
            assert last.answered_up or last.session != self.up or deadly
            assert deadly or self.kept(session, last) or session.given[-1] == last.version
