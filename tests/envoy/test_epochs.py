"""The rules of epochs, one by one and walked at random."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kumadp.envoy.epochs import (
    Action,
    CheckReload,
    EpochAdopted,
    EpochEnded,
    EpochFailed,
    EpochLive,
    EpochOverdue,
    EpochRetired,
    EpochStage,
    EpochStarted,
    EpochState,
    Event,
    GoBlind,
    HandOver,
    KillCurrentEpoch,
    KillNewEpoch,
    ReloadChecked,
    ReloadKind,
    ReloadRequest,
    ReloadRequested,
    ReportOutcome,
    RevertPlan,
    SpawnEpoch,
    StartCold,
    Stopping,
    step,
)

WARM, COLD = ReloadRequest(1, cold=False), ReloadRequest(2, cold=True)


def after(*events: Event, state: EpochState | None = None) -> tuple[EpochState, tuple[Action, ...]]:
    """The state after these events, and the actions of the last one."""
    state, actions = state or EpochState(), tuple[Action, ...]()
    for event in events:
        state, actions = step(state, event)
    return state, actions


SERVING = (EpochStarted(), EpochLive(0))
HANDOVER = (*SERVING, ReloadRequested(WARM), ReloadChecked())


def test_a_good_reload_hands_over_and_the_next_one_waits_for_the_old_epoch() -> None:
    state, actions = after(*HANDOVER)
    assert actions == (SpawnEpoch(1, repair=False),)
    state, actions = step(state, EpochLive(1))
    assert actions == (HandOver(), ReportOutcome(WARM, ReloadKind.HOT))
    assert (state.epoch, state.retiring, state.stage) == (1, True, EpochStage.SERVING)
    state, actions = step(state, ReloadRequested(COLD))
    assert actions == ()
    state, actions = step(state, EpochRetired())
    assert actions == (CheckReload(COLD),)
    assert after(ReloadChecked(), EpochLive(2), state=state)[1] == (HandOver(), ReportOutcome(COLD, ReloadKind.HOT))


def test_of_several_that_wait_the_newest_wins() -> None:
    state, _ = after(*HANDOVER, ReloadRequested(COLD))
    newest = ReloadRequest(3, cold=False)
    state, actions = step(state, ReloadRequested(newest))
    assert actions == (ReportOutcome(COLD, ReloadKind.REFUSED, "a later reload took its place"),)
    assert after(EpochLive(1), EpochRetired(), state=state)[1] == (CheckReload(newest),)


def test_a_reload_that_the_check_refuses_changes_nothing() -> None:
    state, actions = after(*SERVING, ReloadRequested(COLD), ReloadChecked(refused="bad"))
    assert actions == (ReportOutcome(COLD, ReloadKind.REFUSED, "bad"),)
    assert state == after(*SERVING)[0]


def test_a_cold_restart_is_done_only_if_allowed() -> None:
    assert after(*SERVING, ReloadRequested(WARM), ReloadChecked(cold="another Envoy"))[1] == (
        ReportOutcome(WARM, ReloadKind.REFUSED, "only a cold restart can do it: another Envoy"),
    )
    state, actions = after(*SERVING, ReloadRequested(COLD), ReloadChecked(cold="another Envoy"))
    assert actions == (StartCold(),)
    state, actions = after(EpochEnded("stopped"), EpochStarted(), state=state)
    assert actions == ()
    assert step(state, EpochLive(0))[1] == (ReportOutcome(COLD, ReloadKind.COLD),)
    assert step(state, EpochEnded("exit code 1"))[1] == (
        RevertPlan(),
        ReportOutcome(COLD, ReloadKind.FAILED, "exit code 1"),
    )
    assert step(state, EpochOverdue("late"))[1] == (ReportOutcome(COLD, ReloadKind.FAILED, "late"),)


def test_a_reload_is_a_cold_start_if_nothing_serves() -> None:
    assert after(EpochStarted(), ReloadRequested(WARM), ReloadChecked())[1] == (StartCold(),)
    assert after(*SERVING, EpochEnded("gone"), ReloadRequested(WARM), ReloadChecked())[1] == (StartCold(),)


def test_an_adopted_envoy_with_a_late_admin_is_not_restarted_cold_unless_allowed() -> None:
    adopted, _ = after(EpochAdopted(4, blind=False, retiring=False))
    state, actions = after(ReloadRequested(WARM), ReloadChecked(cold="its admin does not answer"), state=adopted)
    assert actions == (
        ReportOutcome(WARM, ReloadKind.REFUSED, "only a cold restart can do it: its admin does not answer"),
    )
    assert after(ReloadRequested(WARM), ReloadChecked(), state=adopted)[1] == (
        ReportOutcome(
            WARM, ReloadKind.REFUSED, "only a cold restart can do it: Envoy was adopted and has not answered yet"
        ),
    )
    assert after(ReloadRequested(COLD), ReloadChecked(), state=state)[1] == (StartCold(),)
    assert after(EpochLive(4), ReloadRequested(WARM), ReloadChecked(), state=state)[1] == (SpawnEpoch(5, repair=False),)
    assert after(EpochEnded("gone"), ReloadRequested(WARM), ReloadChecked(), state=state)[1] == (StartCold(),)


def test_a_stuck_epoch_is_killed_and_another_is_tried_to_get_the_admin_back() -> None:
    state, actions = after(*HANDOVER, EpochOverdue("stuck"))
    assert actions == (KillNewEpoch(),)
    state, actions = step(state, EpochFailed("stuck", unlocked=True))
    assert actions == (GoBlind("stuck"), ReportOutcome(WARM, ReloadKind.FAILED, "stuck"), SpawnEpoch(1, repair=True))
    repaired, actions = step(state, EpochLive(1))
    assert actions == (HandOver(),)
    assert not repaired.blind
    state, actions = step(state, EpochFailed("stuck too", unlocked=True))
    assert actions == (GoBlind("stuck too"),)
    assert (state.blind, state.stage, state.epoch) == (True, EpochStage.SERVING, 0)


def test_without_a_way_to_unlock_it_stays_blind_until_a_cold_restart() -> None:
    state, actions = after(*HANDOVER, EpochFailed("exit code 1"))
    assert actions == (GoBlind("exit code 1"), ReportOutcome(WARM, ReloadKind.FAILED, "exit code 1"))
    state, actions = after(ReloadRequested(COLD), ReloadChecked(cold="locked"), state=state)
    assert actions == (StartCold(),)
    assert not after(EpochEnded("stopped"), EpochStarted(), EpochLive(0), state=state)[0].blind


def test_nothing_serves_after_the_death_of_an_epoch_that_had_the_listeners() -> None:
    assert after(*HANDOVER, EpochFailed("signal 9", took_over=True))[1] == (
        ReportOutcome(WARM, ReloadKind.FAILED, "signal 9"),
        KillCurrentEpoch(),
    )
    # With its admin back in sight or not: the next one has its own.
    adopted, _ = after(EpochAdopted(0, blind=True, retiring=False))
    events = (ReloadRequested(WARM), ReloadChecked(), EpochFailed("signal 9", took_over=True))
    assert not after(*events, state=adopted)[0].blind


def test_the_end_of_the_current_epoch_is_a_crash_also_during_a_hand_over() -> None:
    state, actions = after(*HANDOVER, EpochEnded("signal 9"))
    assert actions == (KillNewEpoch(), ReportOutcome(WARM, ReloadKind.FAILED, "signal 9"))
    assert state == EpochState()
    assert step(state, EpochFailed("killed"))[1] == ()
    assert after(*SERVING, EpochEnded("signal 9"))[1] == ()


def test_no_reload_begins_during_a_stop() -> None:
    state, actions = after(*HANDOVER, ReloadRequested(COLD), Stopping())
    assert actions == (ReportOutcome(COLD, ReloadKind.REFUSED, "everything stops"),)
    assert step(state, EpochFailed("stuck", unlocked=True))[1] == (
        GoBlind("stuck"),
        ReportOutcome(WARM, ReloadKind.FAILED, "stuck"),
    )
    assert step(state, ReloadRequested(COLD))[1] == (ReportOutcome(COLD, ReloadKind.REFUSED, "everything stops"),)
    assert after(*SERVING, ReloadRequested(WARM), Stopping(), ReloadChecked())[1] == (
        ReportOutcome(WARM, ReloadKind.REFUSED, "everything stops"),
    )


def test_an_adopted_envoy_keeps_its_epoch() -> None:
    state, _ = after(EpochAdopted(4, blind=False, retiring=False), EpochLive(4))
    assert after(ReloadRequested(WARM), ReloadChecked(), state=state)[1] == (SpawnEpoch(5, repair=False),)
    blind, _ = after(EpochAdopted(4, blind=True, retiring=False))
    assert (blind.stage, blind.blind) == (EpochStage.SERVING, True)


def test_an_adopted_envoy_whose_successor_was_given_up_gets_another_one() -> None:
    state, actions = after(EpochAdopted(4, blind=True, retiring=False, repair=True))
    assert actions == (SpawnEpoch(5, repair=True),)
    assert (state.stage, state.blind) == (EpochStage.HANDOVER, True)
    served, actions = after(EpochLive(5), state=state)
    assert (served.stage, served.blind, served.epoch) == (EpochStage.SERVING, False, 5)
    failed, actions = after(EpochFailed("exit code 1", unlocked=True), state=state)
    assert (failed.stage, failed.blind) == (EpochStage.SERVING, True)
    assert not [action for action in actions if isinstance(action, SpawnEpoch)]


@dataclass
class World:
    """Processes as they would be: follows the actions and checks what they promise."""

    state: EpochState = field(default_factory=EpochState)
    current: bool = False
    coming: int | None = None
    old: bool = False
    requested: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    checking: bool = False
    stopping: bool = False

    def feed(self, event: Event) -> None:
        previous = self.state
        self.state, actions = step(self.state, event)
        for action in actions:
            self.do(action, previous)
        assert self.state.request is None or self.state.request.number not in self.answered
        assert not self.state.blind or self.state.stage in {EpochStage.SERVING, EpochStage.HANDOVER}

    def do(self, action: Action, previous: EpochState) -> None:
        match action:
            case SpawnEpoch(epoch, repair):
                assert self.current
                assert self.coming is None
                assert not self.old
                assert not self.stopping or not repair
                assert epoch == self.state.epoch + 1
                self.coming = epoch
            case KillNewEpoch():
                assert self.coming is not None
            case HandOver():
                assert self.coming == self.state.epoch
                self.coming, self.old = None, True
            case StartCold() | KillCurrentEpoch():
                self.current = False
                allowed = previous.request is not None and previous.request.cold
                assert isinstance(action, KillCurrentEpoch) or previous.stage is not EpochStage.SERVING or allowed
            case CheckReload():
                assert not self.checking
                self.checking = True
            case GoBlind():
                assert self.current
            case ReportOutcome(request):
                assert request.number not in self.answered
                self.answered.add(request.number)
            case RevertPlan():
                assert not self.current

    def choices(self) -> list[str]:
        """What can happen now."""
        choices = ["request", "request cold"]
        if not self.stopping:
            choices.append("stop")
        if not self.current and self.coming is None:
            choices.append("started")
        if self.current:
            choices.append("ended")
        if self.current and self.state.stage is EpochStage.STARTING:
            choices += ["live", "overdue"]
        if self.coming is not None:
            choices += ["coming live", "overdue", "coming failed", "coming failed unlocked", "coming took over"]
        if self.old:
            choices.append("retired")
        if self.checking:
            choices += ["checked", "checked cold", "checked refused"]
        return choices

    def happen(self, what: str) -> None:
        match what.split():
            case ["request", *cold]:
                self.requested.add(number := len(self.requested))
                self.feed(ReloadRequested(ReloadRequest(number, cold=bool(cold))))
            case ["stop"]:
                self.stopping = True
                self.feed(Stopping())
            case ["started"]:
                self.current, self.old = True, False
                self.feed(EpochStarted())
            case ["ended"]:
                self.current = False
                self.feed(EpochEnded("ended"))
            case ["live"]:
                self.feed(EpochLive(self.state.epoch))
            case ["overdue"]:
                self.feed(EpochOverdue("overdue"))
            case ["coming", "live"]:
                if self.current and self.coming is not None:
                    self.feed(EpochLive(self.coming))
            case ["coming", *how]:
                self.coming = None
                self.feed(EpochFailed("failed", took_over="took" in how, unlocked="unlocked" in how))
            case ["retired"]:
                self.old = False
                self.feed(EpochRetired())
            case ["checked", *how]:
                self.checking = False
                self.feed(ReloadChecked(cold="c" if "cold" in how else "", refused="r" if "refused" in how else ""))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_promises_hold_for_any_sequence_of_events(data: st.DataObject) -> None:
    world = World()
    if data.draw(st.booleans()):
        # One that a previous kumadp left, perhaps in the middle of a hand-over.
        retiring = data.draw(st.booleans())
        world.current, world.old = True, retiring
        world.feed(EpochAdopted(data.draw(st.integers(0, 9)), blind=data.draw(st.booleans()), retiring=retiring))
    for _ in range(data.draw(st.integers(1, 40))):
        world.happen(data.draw(st.sampled_from(world.choices())))
    # Left alone, everything comes to rest, and every reload has got its one answer.
    for _ in range(60):
        choices = world.choices()
        for likely in ("checked refused", "coming failed", "retired", "started", "live"):
            if likely in choices:
                world.happen(likely)
                break
    assert world.answered == world.requested
