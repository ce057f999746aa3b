"""Access logs in a run: the FIFO is there before Envoy, and what Envoy writes at its end is still sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.core.part import Handed, Part
from kumadp.host.socket_names import access_log, kuma_socket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.accesslog.component import AccessLogs, AccessLogsHandover
    from kumadp.core.context import Context
    from kumadp.core.previous import Previous

# How long lines are still sent once Envoy has ended, unless the drain time is shorter (seconds).
_FLUSH = 3.0


class AccessLogPart(Part):
    """Serves what control planes know as ``feature-tcp-accesslog-via-named-pipe``; starts before Envoy."""

    name = "access logs"

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handed: AccessLogsHandover | None = None
        self._logs: AccessLogs | None = None

    @classmethod
    def section_type(cls) -> type[AccessLogsHandover]:
        """Return the type of its section of a handover."""
        from kumadp.accesslog.component import AccessLogsHandover

        return AccessLogsHandover

    def adopt(self, previous: Previous) -> None:
        """Take the lines that were not sent yet, and their destinations."""
        if previous.has_section(self.name):
            self._handed = previous.section(self.name, self.section_type())

    async def start(self) -> None:
        """Read the FIFO from now on; if it cannot be made, that costs access logs alone."""
        from kumadp.accesslog.component import AccessLogs

        context = self._context
        path = kuma_socket(context.work.sockets, access_log(context.name, context.mesh))
        flush = min(_FLUSH, context.settings.drain_time)
        try:
            self._logs = AccessLogs(path, context.status.set_warning, flush=flush, handover=self._handed)
        except OSError as error:
            context.status.mark_failed(self.name, f"{path} cannot be made: {error.strerror or error}")
            return
        context.stack.start(self._logs, stop_deadline=flush + 1)

    def status(self) -> Mapping[str, object]:
        """Return the section ``access_logs``."""
        return {"access_logs": self._logs.status()} if self._logs is not None else {}

    def hand_over(self) -> Handed | None:
        """Return the lines that were not sent yet, with the descriptor of the FIFO."""
        if self._logs is None:
            return None
        handed = self._logs.hand_over()
        return Handed(handed, handed.descriptors)
