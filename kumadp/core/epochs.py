"""Callbacks about the epochs of the proxy: its processes under hot restart, counted from 0."""

from __future__ import annotations


class EpochObserver:
    """Follows the epochs. Each callback does nothing here; they are called on the event loop."""

    def on_epoch_started(self, epoch: int, pid: int) -> None:
        """Handle that a process of this epoch runs."""

    def on_epoch_live(self, epoch: int) -> None:
        """Handle that this epoch is LIVE."""

    def on_epoch_ended(self, epoch: int, *, expected: bool) -> None:
        """Handle that this epoch has ended."""

    def on_takeover(self, *, active: bool) -> None:
        """Handle that a new epoch begins to take over, or has done so."""

    def on_serving(self, *, serves: bool) -> None:
        """Handle that an epoch serves, also that another one has taken over, or that none does."""
