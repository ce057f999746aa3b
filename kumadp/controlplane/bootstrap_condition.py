"""The warning ``bootstrap``: what is wrong with the bootstrap that Envoy runs with, although traffic flows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.core.status import Status
    from kumadp.errors import ControlPlaneUnavailable, KumadpError

log = logging.getLogger("kumadp.controlplane")


class BootstrapCondition:
    """One warning, whoever requests the bootstrap: it has changed, or the control plane gives none."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._change = ""
        self._rejection = ""

    def note_change(self, change: str) -> None:
        """Warn that the present bootstrap is another one than Envoy runs with; an empty text: it is not."""
        self._change = change
        self._report()

    def note_rejection(self, error: KumadpError) -> None:
        """Warn of an answer that the control plane gives instead of a bootstrap."""
        self._rejection = str(error)
        self._report()

    def note_failure(self, error: ControlPlaneUnavailable) -> None:
        """Warn of an attempt that failed, if it is known what to change.

        Otherwise the control plane is unreachable or fails by itself; the relay reports what matters.
        """
        if error.hint:
            self.note_rejection(error)
        else:
            self.log_failure(error)

    def log_failure(self, error: ControlPlaneUnavailable) -> None:
        """Log an attempt that failed, for those who search."""
        log.debug("no bootstrap: %s", error)

    def note_answer(self) -> None:
        """Note that the control plane gives a bootstrap."""
        self._rejection = ""
        self._report()

    def _report(self) -> None:
        rejection = f"{self._rejection}; what runs keeps running" if self._rejection else ""
        self._status.set_warning("bootstrap", "; ".join(filter(None, (rejection, self._change))))
