"""The check before a reload, with a program in Envoy's place, and the outcome for whoever requested it."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.envoy.adopted_envoy import AdoptedEnvoy, EnvoyState
from kumadp.envoy.epochs import ReloadChecked, ReloadKind, ReloadRequest
from kumadp.envoy.options import HotRestart
from kumadp.envoy.reload import Plan, ReloadOutcome, ReloadRequests, check, command_of
from kumadp.envoy.server_state import ServerInfo
from kumadp.process.child import Command

RUNNING = ServerInfo(0, "LIVE", "11.104", 2)


def plan_of(folder: Path, validation: str, *arguments: str, version: str = "11.104") -> Plan:
    """A plan whose program prints this when it validates, and ``version`` as its hot restart protocol."""
    program = folder / "envoy"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--hot-restart-version*) echo "{version}";; *--mode*validate*) {validation};; esac\n'
    )
    program.chmod(0o755)

    async def command() -> Command:
        return Command((str(program), "--config-path", "x", *arguments), "envoy", {"PATH": "/usr/bin:/bin"})

    return Plan(command, TcpAdmin("127.0.0.1", 9901), dynamic=False)


OK = "echo \"configuration 'x' OK\""


@pytest.mark.parametrize("arguments", [(), ("--concurrency", "2"), ("--concurrency", "3")])
async def test_the_same_envoy_is_reloaded_hot(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert await check(plan_of(tmp_path, OK, *arguments), RUNNING, "") == ReloadChecked()


@pytest.mark.parametrize(
    ("validation", "reason"),
    [
        ("echo 'error `no such field` initializing config' >&2", "no such field"),
        ("echo 'first'; echo 'the last line'", "the last line"),
        ("true", "it printed nothing"),
    ],
)
async def test_a_refused_configuration_is_named(tmp_path: Path, validation: str, reason: str) -> None:
    checked = await check(plan_of(tmp_path, validation), RUNNING, "")
    assert checked == ReloadChecked(refused=f"Envoy refuses the configuration: {reason}")


async def test_a_validation_that_is_killed_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    checked = await check(plan_of(tmp_path, "kill -9 $$"), RUNNING, "")
    assert checked.refused.endswith(" ended with signal 9 (KILL) while its configuration was validated")


async def test_what_needs_a_cold_restart(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, OK)
    assert (await check(plan, None, "")).cold == "Envoy's admin does not answer"
    assert (await check(plan, RUNNING, "it is locked")).cold == "it is locked"
    other = plan_of(tmp_path, OK, version="12.104")
    assert (await check(other, RUNNING, "")).cold == "hot restart speaks 12.104 there and 11.104 here"
    fewer = plan_of(tmp_path, OK, "--concurrency", "1")
    assert (await check(fewer, RUNNING, "")).cold == "with 1 workers in place of 2 connections would be lost"


async def test_a_validation_without_end_is_refused(tmp_path: Path) -> None:
    checked = await check(plan_of(tmp_path, "sleep 20"), RUNNING, "", idle=0.1)
    assert "did not end in time" in checked.refused


async def test_the_outcome_comes_with_its_duration_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    requests, plan = ReloadRequests(), plan_of(tmp_path, OK)
    request, future = requests.add(None, "SIGHUP", cold=False)
    other, refused = requests.add(plan, "a changed file", cold=True)
    assert (request.cold, other.cold) == (False, True)
    assert requests.plan_of(other, plan_of(tmp_path, "true")) is plan
    assert requests.plan_of(request, plan) is plan
    assert requests.plan_of(None, plan) is plan
    assert (requests.why_of(request), requests.why_of(None)) == ("SIGHUP", "")
    await asyncio.sleep(0.01)
    requests.report(request, ReloadOutcome(ReloadKind.HOT, "", 1, missing=("x",)))
    outcome = await future
    assert (outcome.kind, outcome.epoch, outcome.missing) == (ReloadKind.HOT, 1, ("x",))
    assert outcome.seconds >= 0.01
    assert (outcome.serves, outcome.ok) == (True, False)
    requests.refuse_all("everything stops", 1)
    assert (await refused).reason == "everything stops"
    assert "reload (a changed file): refused: everything stops" in caplog.text


async def test_a_caller_that_does_not_wait_any_more_is_no_error() -> None:
    requests = ReloadRequests()
    request, future = requests.add(None, "x", cold=False)
    future.cancel()
    requests.report(request, ReloadOutcome(ReloadKind.FAILED, "y", 0))
    with pytest.raises(KeyError):
        requests.report(ReloadRequest(1, cold=False), ReloadOutcome(ReloadKind.FAILED, "y", 0))


def test_each_epoch_has_its_own_fifo() -> None:
    command = Command(("envoy",), "envoy", {}, fifo=Path("/run/kumadp/envoy"))
    assert command_of(command, ("envoy", "-x"), "0.1").fifo == Path("/run/kumadp/envoy.0.1")
    assert command_of(Command(("envoy",), "envoy", {}), ("envoy", "-x"), "0.1").fifo is None


def test_an_old_epoch_ends_a_margin_after_its_drain() -> None:
    assert HotRestart(Path("/x"), drain_time=30.9, margin=2.0).parent_shutdown() == 32.0
    # Short blocks of the new epoch's main thread are within the margin.
    assert HotRestart(Path("/x"), drain_time=30.9, margin=2.0).parent_shutdown(1.5) == 32.0
    assert HotRestart(Path("/x"), drain_time=30.9, margin=2.0).parent_shutdown(12.5) == 42.5


def test_a_dead_parent_counts_as_long_as_the_new_epoch_may_reach_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)

    def dead_parent(retires_at: float, retiring: object = None) -> int | None:
        state = EnvoyState(serial=0, epoch=1, blind=False, current=7, retiring=6, retires_at=retires_at)
        return AdoptedEnvoy(state, object(), retiring).dead_parent  # type: ignore[arg-type]

    assert dead_parent(95.0) == 6
    assert dead_parent(90.0) is None
    assert dead_parent(95.0, object()) is None
