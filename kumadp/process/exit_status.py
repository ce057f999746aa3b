"""How a process ended. Pure."""

from __future__ import annotations

import signal

from msgspec import Struct


class ExitStatus(Struct, frozen=True):
    """How a process ended: an exit code, or the number of the signal that killed it; neither if that is unknown.

    ``oom``: the counter file and the number of out-of-memory kills in our cgroup before and after. ``why`` is the
    reason for which kumadp killed it (`kumadp.process.child.Child.kill_with_reason`).
    """

    code: int | None
    signal: int | None
    oom: tuple[str, int, int] | None = None
    why: str = ""

    @property
    def clean(self) -> bool:
        """Exit code 0."""
        return self.code == 0

    def describe(self) -> str:
        """Return ``exit code 1``, ``signal 9 (KILL)``, or that the status of an adopted process is unknown."""
        if self.signal is None and self.code is None:
            return "an unknown exit status (it was started by an earlier kumadp)"
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            name = signal.Signals(self.signal).name.removeprefix("SIG")
        except ValueError:
            name = "unknown"
        why = f" from kumadp ({self.why})" if self.why else ""
        why += ", out of memory: the kernel killed it for its cgroup or the host" if self.oom is not None else ""
        return f"signal {self.signal} ({name}){why}"
