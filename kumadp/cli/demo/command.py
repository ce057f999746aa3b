"""``kumadp demo``: the main job on one machine, without a control plane."""

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

    from kumadp.cli.demo.stage import Stage

DRAIN_SECONDS = 5
CHECK_DRAIN_SECONDS = 1
BETWEEN_LOOKS = 0.25
FAILED = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--check", is_flag=True, help="Ask everything itself, print ok or failed a line, exit with 0 or 1.")
def demo(check: bool) -> int:
    """Show the main job: a real Envoy in front of a small workload.

    Starts two small workloads and `kumadp run --standalone` in a private folder, on loopback alone: an inbound, an
    outbound, virtual probes, Envoy's admin, DNS. Shows what runs where with a command to try for each. Ctrl-C drains
    and ends everything. Where one of the usual ports is taken, a free one is used.
    """
    return asyncio.run(_demo(check=check))


async def _demo(*, check: bool) -> int:
    from kumadp.cli.demo.check import check as check_all
    from kumadp.cli.demo.stage import Stage

    stage = Stage.open(f"{CHECK_DRAIN_SECONDS if check else DRAIN_SECONDS}s")
    try:
        asked_to_stop = _listen_for_signals(stage)
        await stage.start()
        if not check:
            return await _show(stage, asked_to_stop)
        passed = await _unless_stopped(check_all(stage), asked_to_stop)
        if not passed:
            _print_log(stage)
        return ExitCode.OK if passed else FAILED
    finally:
        await stage.close()


async def _unless_stopped(work: Coroutine[Any, Any, bool], asked_to_stop: asyncio.Event) -> bool:
    """What ``work`` gives; False, and the work cancelled, where a signal comes first."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(asked_to_stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    task.cancel()
    click.echo("failed: stopped by a signal")
    return False


def _listen_for_signals(stage: Stage) -> asyncio.Event:
    """Pass each stop signal on to kumadp as one SIGTERM; the event is set from the first one on."""
    asked = asyncio.Event()

    def stop() -> None:
        asked.set()
        stage.terminate()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return asked


async def _show(stage: Stage, asked_to_stop: asyncio.Event) -> int:
    from kumadp.cli.demo.table import Scene, Screen, render

    assert stage.daemon is not None  # noqa: S101
    screen = Screen(sys.stdout) if sys.stdout.isatty() else None
    ended = asyncio.ensure_future(stage.daemon.wait())
    printed: set[str] = set()
    if asked_to_stop.is_set():
        stage.terminate()
    while not ended.done():
        status = await stage.ask_status()
        scene = Scene(stage.ports, stage.mesh, DRAIN_SECONDS, stage.workload_runs)
        if screen is not None:
            screen.show(render(scene, status, time.time()))
        elif (phase := _new_phase(status, printed)) is not None:
            click.echo("\n".join(render(scene, status, time.time()) if phase == "READY" else [f"kumadp: {phase}"]))
        await asyncio.wait({ended}, timeout=BETWEEN_LOOKS)
    code = ended.result()
    # A signal that comes before kumadp has its handlers ends it by itself.
    if asked_to_stop.is_set() and code in {ExitCode.OK, -signal.SIGTERM}:
        click.echo("kumadp: stopped; nothing is left behind")
        return ExitCode.OK
    _print_log(stage)
    click.echo(f"kumadp ended with exit code {code}", err=True)
    return code if code > 0 else FAILED


def _new_phase(status: Mapping[str, Any] | None, printed: set[str]) -> str | None:
    """The phase where it is worth a line and was not printed yet."""
    phase = str((status or {}).get("phase"))
    if phase not in {"READY", "DRAINING"} or phase in printed:
        return None
    printed.add(phase)
    return phase


def _print_log(stage: Stage) -> None:
    for line in stage.tail():
        click.echo(f"  {line}", err=True)
