"""Dynamic configuration in this run: asked for while an Envoy serves, and at once when it has new listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kumadp.dynconf.component import DynamicConfiguration, PollOptions
from kumadp.host.socket_names import DYNAMIC_CONFIGURATION, kuma_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kumadp.core.context import Run
    from kumadp.envoy.part import Running
    from kumadp.relay.part import Relaying
    from kumadp.resources.dynconf_bodies import BodyHandler

# What carries it, by the end of its type's name.
_LISTENER = ".Listener"


class Dynamic:
    """Makes the component, which is to be started with Envoy, and has it told of Envoy and of the relay.

    ``handlers``: the owners of each path's body, called one after another. ``absent``: by path, called each time that
    Envoy is seen to serve nothing there and nobody has anything of it.
    """

    def __init__(
        self,
        run: Run,
        running: Running,
        relaying: Relaying | None,
        handlers: Mapping[str, Sequence[BodyHandler]],
        absent: Mapping[str, Callable[[], None]],
    ) -> None:
        self._status = run.status
        owners = {path: _all_of(each) for path, each in handlers.items()}
        socket = kuma_socket(run.work.sockets, DYNAMIC_CONFIGURATION)
        self.component = DynamicConfiguration(
            socket,
            PollOptions(run.settings.dynconf_refresh_interval, changes_announced=relaying is not None),
            owners,
            set_warning=self._concern,
            on_absent=lambda path: absent[path]() if path in absent else None,
        )
        running.serves = self.component.on_envoy
        if relaying is not None:
            relaying.accepted = self._accepted
        run.status.asked["dynconf"] = self.component.status

    def _concern(self, path: str, concern: str) -> None:
        self._status.set_warning(f"dynamic configuration {path}", concern)

    def _accepted(self, type_url: str) -> None:
        if type_url.endswith(_LISTENER):
            self.component.poll_now()


def _all_of(handlers: Sequence[BodyHandler]) -> BodyHandler:
    async def handle(body: Any) -> None:
        for handler in handlers:
            await handler(body)

    return handle
