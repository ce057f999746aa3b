"""The rules of epochs, one by one and walked at random."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kumadp.envoy.epochs import (
    Action,
    Adopted,
    Answer,
    Ask,
    Asked,
    Check,
    Checked,
    Crash,
    Ended,
    Event,
    Failed,
    GoBlind,
    HandOver,
    Kill,
    Kind,
    Leaving,
    Line,
    Live,
    Overdue,
    Retired,
    Revert,
    Spawn,
    Stage,
    StartCold,
    Started,
    step,
)

WARM, COLD = Ask(1, cold=False), Ask(2, cold=True)


def after(*events: Event, line: Line | None = None) -> tuple[Line, tuple[Action, ...]]:
    """The line after these events, and what the last one asks for."""
    line, actions = line or Line(), tuple[Action, ...]()
    for event in events:
        line, actions = step(line, event)
    return line, actions


SERVING = (Started(), Live(0))
HANDOVER = (*SERVING, Asked(WARM), Checked())


def test_a_good_reload_hands_over_and_the_next_one_waits_for_the_old_epoch() -> None:
    line, actions = after(*HANDOVER)
    assert actions == (Spawn(1, repair=False),)
    line, actions = step(line, Live(1))
    assert actions == (HandOver(), Answer(WARM, Kind.HOT))
    assert (line.epoch, line.retiring, line.stage) == (1, True, Stage.SERVING)
    line, actions = step(line, Asked(COLD))
    assert actions == ()
    line, actions = step(line, Retired())
    assert actions == (Check(COLD),)
    assert after(Checked(), Live(2), line=line)[1] == (HandOver(), Answer(COLD, Kind.HOT))


def test_of_several_that_wait_the_newest_wins() -> None:
    line, _ = after(*HANDOVER, Asked(COLD))
    newest = Ask(3, cold=False)
    line, actions = step(line, Asked(newest))
    assert actions == (Answer(COLD, Kind.REFUSED, "a later reload took its place"),)
    assert after(Live(1), Retired(), line=line)[1] == (Check(newest),)


def test_what_the_check_refuses_costs_nothing() -> None:
    line, actions = after(*SERVING, Asked(COLD), Checked(refused="bad"))
    assert actions == (Answer(COLD, Kind.REFUSED, "bad"),)
    assert line == after(*SERVING)[0]


def test_a_cold_restart_is_done_only_where_it_is_allowed() -> None:
    assert after(*SERVING, Asked(WARM), Checked(cold="another Envoy"))[1] == (
        Answer(WARM, Kind.REFUSED, "only a cold restart can do it: another Envoy"),
    )
    line, actions = after(*SERVING, Asked(COLD), Checked(cold="another Envoy"))
    assert actions == (StartCold(),)
    line, actions = after(Ended("stopped"), Started(), line=line)
    assert actions == ()
    assert step(line, Live(0))[1] == (Answer(COLD, Kind.COLD),)
    assert step(line, Ended("exit code 1"))[1] == (Revert(), Answer(COLD, Kind.FAILED, "exit code 1"))
    assert step(line, Overdue("late"))[1] == (Answer(COLD, Kind.FAILED, "late"),)


def test_where_nothing_serves_a_reload_is_a_cold_start_without_being_asked() -> None:
    assert after(Started(), Asked(WARM), Checked())[1] == (StartCold(),)
    assert after(*SERVING, Ended("gone"), Asked(WARM), Checked())[1] == (StartCold(),)


def test_an_adopted_one_whose_admin_is_late_serves_and_is_not_restarted_without_being_asked() -> None:
    found, _ = after(Adopted(4, blind=False, retiring=False))
    line, actions = after(Asked(WARM), Checked(cold="its admin does not answer"), line=found)
    assert actions == (Answer(WARM, Kind.REFUSED, "only a cold restart can do it: its admin does not answer"),)
    assert after(Asked(WARM), Checked(), line=found)[1] == (
        Answer(WARM, Kind.REFUSED, "only a cold restart can do it: Envoy was adopted and has not answered yet"),
    )
    assert after(Asked(COLD), Checked(), line=line)[1] == (StartCold(),)
    assert after(Live(4), Asked(WARM), Checked(), line=line)[1] == (Spawn(5, repair=False),)
    assert after(Ended("gone"), Asked(WARM), Checked(), line=line)[1] == (StartCold(),)


def test_a_stuck_epoch_is_killed_and_one_more_is_tried_to_get_the_admin_back() -> None:
    line, actions = after(*HANDOVER, Overdue("stuck"))
    assert actions == (Kill(),)
    line, actions = step(line, Failed("stuck", unlocked=True))
    assert actions == (GoBlind("stuck"), Answer(WARM, Kind.FAILED, "stuck"), Spawn(1, repair=True))
    repaired, actions = step(line, Live(1))
    assert actions == (HandOver(),)
    assert not repaired.blind
    line, actions = step(line, Failed("stuck too", unlocked=True))
    assert actions == (GoBlind("stuck too"),)
    assert (line.blind, line.stage, line.epoch) == (True, Stage.SERVING, 0)


def test_without_a_way_to_unlock_it_stays_blind_until_a_cold_restart() -> None:
    line, actions = after(*HANDOVER, Failed("exit code 1"))
    assert actions == (GoBlind("exit code 1"), Answer(WARM, Kind.FAILED, "exit code 1"))
    line, actions = after(Asked(COLD), Checked(cold="locked"), line=line)
    assert actions == (StartCold(),)
    assert not after(Ended("stopped"), Started(), Live(0), line=line)[0].blind


def test_one_that_took_the_listeners_and_ended_leaves_nothing_that_serves() -> None:
    assert after(*HANDOVER, Failed("signal 9", took_over=True))[1] == (
        Answer(WARM, Kind.FAILED, "signal 9"),
        Crash(),
    )


def test_the_end_of_the_current_epoch_is_a_crash_also_during_a_hand_over() -> None:
    line, actions = after(*HANDOVER, Ended("signal 9"))
    assert actions == (Kill(), Answer(WARM, Kind.FAILED, "signal 9"))
    assert line == Line()
    assert step(line, Failed("killed"))[1] == ()
    assert after(*SERVING, Ended("signal 9"))[1] == ()


def test_who_leaves_begins_nothing() -> None:
    line, actions = after(*HANDOVER, Asked(COLD), Leaving())
    assert actions == (Answer(COLD, Kind.REFUSED, "everything stops"),)
    assert step(line, Failed("stuck", unlocked=True))[1] == (
        GoBlind("stuck"),
        Answer(WARM, Kind.FAILED, "stuck"),
    )
    assert step(line, Asked(COLD))[1] == (Answer(COLD, Kind.REFUSED, "everything stops"),)
    assert after(*SERVING, Asked(WARM), Leaving(), Checked())[1] == (Answer(WARM, Kind.REFUSED, "everything stops"),)


def test_an_adopted_envoy_goes_on_with_its_epoch() -> None:
    line, _ = after(Adopted(4, blind=False, retiring=False), Live(4))
    assert after(Asked(WARM), Checked(), line=line)[1] == (Spawn(5, repair=False),)
    blind, _ = after(Adopted(4, blind=True, retiring=False))
    assert (blind.stage, blind.blind) == (Stage.SERVING, True)


@dataclass
class World:
    """Processes as they would be: follows what the rules ask for and holds them to their promises."""

    line: Line = field(default_factory=Line)
    current: bool = False
    coming: int | None = None
    old: bool = False
    asked: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    checking: bool = False
    left: bool = False

    def feed(self, event: Event) -> None:
        before = self.line
        self.line, actions = step(self.line, event)
        for action in actions:
            self.do(action, before)
        assert self.line.ask is None or self.line.ask.number not in self.answered
        assert not self.line.blind or self.line.stage in {Stage.SERVING, Stage.HANDOVER}

    def do(self, action: Action, before: Line) -> None:
        match action:
            case Spawn(epoch, repair):
                assert self.current
                assert self.coming is None
                assert not self.old
                assert not self.left or not repair
                assert epoch == self.line.epoch + 1
                self.coming = epoch
            case Kill():
                assert self.coming is not None
            case HandOver():
                assert self.coming == self.line.epoch
                self.coming, self.old = None, True
            case StartCold() | Crash():
                self.current = False
                allowed = before.ask is not None and before.ask.cold
                assert isinstance(action, Crash) or before.stage is not Stage.SERVING or allowed
            case Check():
                assert not self.checking
                self.checking = True
            case GoBlind():
                assert self.current
            case Answer(ask):
                assert ask.number not in self.answered
                self.answered.add(ask.number)
            case Revert():
                assert not self.current

    def choices(self) -> list[str]:
        """What can happen now."""
        found = ["ask", "ask cold"]
        if not self.left:
            found.append("leave")
        if not self.current and self.coming is None:
            found.append("started")
        if self.current:
            found.append("ended")
        if self.current and self.line.stage is Stage.STARTING:
            found += ["live", "overdue"]
        if self.coming is not None:
            found += ["coming live", "overdue", "coming failed", "coming failed unlocked", "coming took over"]
        if self.old:
            found.append("retired")
        if self.checking:
            found += ["checked", "checked cold", "checked refused"]
        return found

    def happen(self, what: str) -> None:
        match what.split():
            case ["ask", *cold]:
                self.asked.add(number := len(self.asked))
                self.feed(Asked(Ask(number, cold=bool(cold))))
            case ["leave"]:
                self.left = True
                self.feed(Leaving())
            case ["started"]:
                self.current, self.old = True, False
                self.feed(Started())
            case ["ended"]:
                self.current = False
                self.feed(Ended("ended"))
            case ["live"]:
                self.feed(Live(self.line.epoch))
            case ["overdue"]:
                self.feed(Overdue("overdue"))
            case ["coming", "live"]:
                if self.current and self.coming is not None:
                    self.feed(Live(self.coming))
            case ["coming", *how]:
                self.coming = None
                self.feed(Failed("failed", took_over="took" in how, unlocked="unlocked" in how))
            case ["retired"]:
                self.old = False
                self.feed(Retired())
            case ["checked", *how]:
                self.checking = False
                self.feed(Checked(cold="c" if "cold" in how else "", refused="r" if "refused" in how else ""))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_happens_the_promises_hold(data: st.DataObject) -> None:
    world = World()
    for _ in range(data.draw(st.integers(1, 40))):
        world.happen(data.draw(st.sampled_from(world.choices())))
    # Left alone, everything comes to rest, and every reload has got its one answer.
    for _ in range(60):
        choices = world.choices()
        for likely in ("checked refused", "coming failed", "retired", "started", "live"):
            if likely in choices:
                world.happen(likely)
                break
    assert world.answered == world.asked
