"""One kumadp follows another in the same process: the new program is tried, then takes over by execve(2)."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import msgspec

from kumadp.core.phases import Phase
from kumadp.daemon.adoption import SECTION, Left, Source
from kumadp.daemon.readiness import whole_answer
from kumadp.errors import HandoverFailed
from kumadp.host.net.serve import paused
from kumadp.host.reexec.handover import become, collect, hold_signals, release_signals
from kumadp.process.handover_check import check_new_program
from kumadp.process.supervisor import PreviousDeaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from kumadp.core.context import Run
    from kumadp.daemon.configuration import Configuration
    from kumadp.envoy.part import Running
    from kumadp.host.reexec.handover import Handover
    from kumadp.process.application import HandedProcess
    from kumadp.process.child import Child

log = logging.getLogger("kumadp.daemon")


async def succeed(
    run: Run,
    configuration: Configuration,
    running: Running,
    others: tuple[Child, ...],
    *,
    inbound_drained: Callable[[], bool],
    application: Callable[[], HandedProcess | None],
    before: Handover | None,
    flush: Callable[[], object],
    why: str,
) -> NoReturn:
    """Become the new program; raises HandoverFailed, with everything as it was, where that cannot be done.

    What the control plane sees: its stream breaks. For 10 s it refuses the next one, which is tried each 0.1 s by then,
    and where the Dataplane came with the stream it forgets it for as long as that takes (Kuma 2.8 to 2.13).
    """

    def left() -> Handover:
        envoy = running.component
        state = envoy.export() if envoy is not None else None
        if envoy is None or state is None:
            raise HandoverFailed("Envoy is being started or replaced", "ask again when it serves")
        children = tuple(child.handed() for child in (*envoy.children, *others))
        fetched, relaying = configuration.prepared.fetched, configuration.relaying
        work, logs = run.work.handed(), run.access_logs.hand_over() if run.access_logs is not None else None
        content = Left(
            work=work,
            ready=run.status.phase is Phase.READY,
            started=run.status.started,
            inbound_drained=inbound_drained(),
            children=children,
            at=time.monotonic(),
            started_as=running.started_as,
            ports=run.chosen.ports if run.chosen is not None else {},
            source=Source.of(fetched) if fetched is not None else None,
            envoy=state,
            memory=relaying.relay.snapshot() if relaying is not None else None,
            access_logs=logs,
            application=application(),
            levels=run.levels.handed(),
            past={name: PreviousDeaths.of(report) for name, report in run.status.children.items()},
            names=run.names_left(),
        )
        descriptors = (work.lock, *(child.output for child in children), *(logs.descriptors if logs else ()))
        ready = whole_answer(run.status.ready_state)
        return collect({SECTION: msgspec.msgpack.encode(content)}, descriptors, before, ready=ready)

    version = await check_new_program(left(), run.environ)
    log.info("re-executing (%s): %s takes over", why, version)
    await configuration.written()
    async with paused():
        await hold_signals()
        try:
            if run.status.phase not in {Phase.READY, Phase.STARTING}:
                raise HandoverFailed(f"everything stops ({run.status.phase.value})")
            become(left(), run.environ, flush)
        finally:
            release_signals()
