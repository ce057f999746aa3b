"""Dynamic configuration in a run: polled while an Envoy serves, and at once when it has new listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kumadp.core.epochs import EpochObserver
from kumadp.core.part import Part
from kumadp.host.socket_names import DYNAMIC_CONFIGURATION, kuma_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kumadp.core.context import Context
    from kumadp.dynconf.component import DynamicConfiguration
    from kumadp.resources.dynconf_bodies import BodyHandler

# What carries it, by the end of its type's name.
_LISTENER = ".Listener"


class DynconfPart(Part, EpochObserver):
    """Owns the component, and follows Envoy's epochs.

    ``handlers``: the owners of each path's body, called one after another. ``absent``: by path, called each time that
    Envoy is seen to serve nothing there and nobody has anything of it. ``announced``: whether `on_accepted` is called
    for each change of Envoy's listeners.
    """

    name = "dynamic configuration"

    def __init__(
        self,
        context: Context,
        handlers: Mapping[str, Sequence[BodyHandler]],
        absent: Mapping[str, Callable[[], None]],
        announced: Callable[[], bool],
    ) -> None:
        self._context = context
        self._handlers = {path: _call_all(owners) for path, owners in handlers.items()}
        self._absent = absent
        self._announced = announced
        self._component: DynamicConfiguration | None = None
        self._serves = False

    async def start(self) -> None:
        """Poll from now on, while Envoy serves."""
        from kumadp.dynconf.component import DynamicConfiguration, PollOptions

        context, absent = self._context, self._absent
        self._component = component = DynamicConfiguration(
            kuma_socket(context.work.sockets, DYNAMIC_CONFIGURATION),
            PollOptions(context.settings.dynconf_refresh_interval, changes_announced=self._announced()),
            self._handlers,
            set_warning=self._set_warning,
            on_absent=lambda path: absent[path]() if path in absent else None,
        )
        component.on_envoy(self._serves)
        context.stack.start(component)

    def status(self) -> Mapping[str, object]:
        """Return the section ``dynconf``."""
        return {"dynconf": self._component.status()} if self._component is not None else {}

    def on_accepted(self, type_url: str) -> None:
        """Poll at once when Envoy has accepted listeners."""
        if self._component is not None and type_url.endswith(_LISTENER):
            self._component.poll_now()

    def on_serving(self, *, serves: bool) -> None:
        """Poll while an Envoy serves."""
        self._serves = serves
        if self._component is not None:
            self._component.on_envoy(serves)

    def _set_warning(self, path: str, warning: str) -> None:
        self._context.status.set_warning(f"dynamic configuration {path}", warning)


def _call_all(owners: Sequence[BodyHandler]) -> BodyHandler:
    async def handle(body: Any) -> None:
        for owner in owners:
            await owner(body)

    return handle
