"""Options of the Envoy component, and its callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.envoy.base_id import SharedMemory
from kumadp.envoy.hang_watch import HangWatch
from kumadp.process.supervisor import PreviousDeaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.envoy.adopted_envoy import AdoptedEnvoy, Scope
    from kumadp.process.restart_policy import RestartPolicy
    from kumadp.process.supervisor import ChildReport


def _ignore(*_: object) -> None:
    pass


class HotRestart(Struct, frozen=True):
    """Settings of hot restart; all times in seconds. ``directory`` belongs to kumadp and has mode 0700.

    ``deadline`` is how long a new epoch may make no progress until it is LIVE. ``drain_time`` is the one of Envoy's
    command line; an old epoch ends at least ``margin`` after it.
    """

    directory: Path
    drain_time: float
    deadline: float = 15.0
    margin: float = 2.0
    shared_memory: SharedMemory = field(default_factory=SharedMemory)

    def parent_shutdown(self, blocks: float = 0.0) -> float:
        """Return the seconds from the moment that a new epoch is LIVE until the old one ends.

        ``blocks``: for how long its main thread may block before, see `kumadp.envoy.start_time`.
        """
        return float(int(self.drain_time)) + max(self.margin, blocks)


class EpochCallbacks(Struct, frozen=True):
    """Callbacks for each Envoy, by generation and pid.

    A generation is a number that only grows: epochs begin at 0 again after a cold start. ``on_ended`` gets whether the
    end was expected. ``on_handover`` gets True when a new epoch is started and False once it is LIVE or has failed.
    ``on_progress`` is called while an Envoy comes up and moves. ``on_hot_restart_off`` gets the reason why this host
    allows no hot restart.
    """

    on_started: Callable[[int, int], None] = field(default=_ignore)
    on_live: Callable[[int], None] = field(default=_ignore)
    on_ended: Callable[[int, int, bool], None] = field(default=_ignore)
    on_handover: Callable[[bool], None] = field(default=_ignore)
    on_hot_restart_off: Callable[[str], None] = field(default=_ignore)
    on_progress: Callable[[], None] = field(default=_ignore)


class EnvoyOptions(Struct, frozen=True):
    """Options of the Envoy component. ``stop_grace`` is in seconds.

    ``hot_restart`` None turns hot restart off, and the command line is kuma-dp's. ``hang_watch`` None: an Envoy that
    hangs is not restarted. ``adopted`` is an Envoy that runs already, ``drained`` is what of it is drained, and
    ``past`` is the restart history of the previous kumadp.
    """

    policy: RestartPolicy
    stop_grace: float
    hot_restart: HotRestart | None = None
    hang_watch: HangWatch | None = field(default_factory=HangWatch)
    adopted: AdoptedEnvoy | None = None
    drained: Scope = ""
    past: PreviousDeaths = field(default_factory=PreviousDeaths)


class EnvoyCallbacks(Struct, frozen=True):
    """Callbacks of the Envoy component.

    ``on_change`` gets each state of the process. ``on_not_ready`` gets the reason why Envoy does not serve yet, "" once
    it does. ``on_unresponsive`` gets the reason when a running Envoy stops answering, "" when it answers again.
    ``is_stopping`` returns whether kumadp is about to stop: an Envoy that ends then is not restarted, since a new
    one would accept traffic that is never drained.
    """

    on_change: Callable[[ChildReport], None]
    on_not_ready: Callable[[str], None]
    on_unresponsive: Callable[[str], None] = field(default=_ignore)
    is_stopping: Callable[[], bool] = field(default=lambda: False)
    epochs: EpochCallbacks = field(default_factory=EpochCallbacks)
