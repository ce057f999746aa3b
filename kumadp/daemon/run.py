"""A data plane from its first line of log to its exit code."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kumadp.daemon.start import Assembly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.core.context import Run
    from kumadp.daemon.driven import Outcome
    from kumadp.daemon.start import Reread
    from kumadp.host.reexec.handover import Handover

log = logging.getLogger("kumadp.daemon")


async def run_daemon(
    run: Run,
    reread: Reread,
    flush: Callable[[], object],
    notes: tuple[str, ...],
    shown: Mapping[str, str],
    handover: Handover | None = None,
) -> Outcome:
    """Run a data plane to its end; ``notes`` and the ``shown`` settings are logged first."""
    for note in notes:
        log.warning("%s", note)
    log.info("settings: %s", ", ".join(f"{name}={value}" for name, value in shown.items()) or "all defaults")
    assembly = Assembly(run, reread, flush, handover)
    outcome = await assembly.application.conclude(await assembly.loop.run())
    assembly.notifying.close()
    await run.crashes.close(int(outcome.code), outcome.why, run.settings.termination_log)
    level = logging.INFO if outcome.code == 0 else logging.ERROR
    log.log(level, "exit code %d: %s", outcome.code, outcome.why)
    return outcome
