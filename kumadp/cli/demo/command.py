"""``kumadp demo``: a data plane and two workloads on one machine, without a control plane."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from kumadp.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from typing import Any

    from kumadp.cli.demo.stage import DemoStage

DRAIN_SECONDS = 5
CHECK_DRAIN_SECONDS = 1
REFRESH_INTERVAL = 0.25
FAILED = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--check", is_flag=True, help="Run all checks, print ok or failed for each, exit with 0 or 1.")
def demo(check: bool) -> int:
    """Run a demo: a real Envoy in front of a small workload.

    Starts two small workloads and `kumadp run --standalone` in a private directory, on loopback only: an inbound, an
    outbound, virtual probes, Envoy's admin, DNS. Prints a table of what runs where, with a command to try for each.
    Ctrl-C drains and stops everything. If one of the usual ports is taken, a free one is used.
    """
    return asyncio.run(_demo(check=check))


async def _demo(*, check: bool) -> int:
    from kumadp.cli.demo.check import check as check_all
    from kumadp.cli.demo.stage import DemoStage

    stage = DemoStage.open(f"{CHECK_DRAIN_SECONDS if check else DRAIN_SECONDS}s")
    try:
        stop_requested = _listen_for_signals(stage)
        await stage.start()
        if not check:
            return await _show(stage, stop_requested)
        passed = await _unless_stopped(check_all(stage), stop_requested)
        if not passed:
            _print_log(stage)
        return ExitCode.OK if passed else FAILED
    finally:
        await stage.close()


async def _unless_stopped(work: Coroutine[Any, Any, bool], stop_requested: asyncio.Event) -> bool:
    """Return the result of ``work``; if a signal comes first, cancel it and return False."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop_requested.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    task.cancel()
    click.echo("failed: stopped by a signal")
    return False


def _listen_for_signals(stage: DemoStage) -> asyncio.Event:
    """Pass each stop signal on to kumadp as a SIGTERM. Return an event that the first one sets."""
    requested = asyncio.Event()

    def stop() -> None:
        requested.set()
        stage.terminate()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return requested


async def _show(stage: DemoStage, stop_requested: asyncio.Event) -> int:
    from kumadp.cli.demo.table import Scene, Screen, render

    assert stage.daemon is not None  # noqa: S101
    screen = Screen(sys.stdout) if sys.stdout.isatty() else None
    ended = asyncio.ensure_future(stage.daemon.wait())
    printed: set[str] = set()
    if stop_requested.is_set():
        stage.terminate()
    while not ended.done():
        status = await stage.query_status()
        scene = Scene(stage.ports, stage.mesh, DRAIN_SECONDS, stage.workload_runs)
        if screen is not None:
            screen.show(render(scene, status, time.time()))
        elif (phase := _new_phase(status, printed)) is not None:
            click.echo("\n".join(render(scene, status, time.time()) if phase == "READY" else [f"kumadp: {phase}"]))
        await asyncio.wait({ended}, timeout=REFRESH_INTERVAL)
    code = ended.result()
    # A signal that comes before kumadp has its handlers ends it without a drain.
    if stop_requested.is_set() and code in {ExitCode.OK, -signal.SIGTERM}:
        click.echo("kumadp: stopped; nothing is left behind")
        return ExitCode.OK
    _print_log(stage)
    click.echo(f"kumadp ended with exit code {code}", err=True)
    return code if code > 0 else FAILED


def _new_phase(status: Mapping[str, Any] | None, printed: set[str]) -> str | None:
    """Return the phase if it is READY or DRAINING and was not printed yet."""
    phase = str((status or {}).get("phase"))
    if phase not in {"READY", "DRAINING"} or phase in printed:
        return None
    printed.add(phase)
    return phase


def _print_log(stage: DemoStage) -> None:
    for line in stage.tail():
        click.echo(f"  {line}", err=True)
