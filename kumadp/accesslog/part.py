"""Access logs in this run: the FIFO is there before Envoy, and what Envoy writes at its end is still sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.accesslog.component import AccessLogs
from kumadp.host.socket_names import access_log, kuma_socket

if TYPE_CHECKING:
    from kumadp.core.context import Run

# How long lines are still sent once Envoy has ended, where the drain time is not shorter (seconds).
_FLUSH = 3.0


def start_access_logs(run: Run) -> None:
    """Serve what control planes know as ``feature-tcp-accesslog-via-named-pipe``. To be called before Envoy starts."""
    if run.mesh is not None:
        return
    path = kuma_socket(run.work.sockets, access_log(run.name, run.mesh_name))
    flush = min(_FLUSH, run.settings.drain_time)
    try:
        logs = AccessLogs(path, run.status.set_warning, flush=flush, handover=run.before.access_logs)
    except OSError as error:
        run.status.mark_failed(AccessLogs.name, f"{path} cannot be made: {error.strerror or error}")
        return
    run.access_logs = logs
    run.status.asked["access_logs"] = logs.status
    run.stack.start(logs, stop_deadline=flush + 1)
