"""A data plane with steady traffic in which something goes wrong: `FaultRig.fault` records what that does."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from kumadp.errors import ExitCode
from tests.support.control_planes import open_plane
from tests.support.daemon import get
from tests.support.fault_load import NAME_QUERIED, FaultLoad, Traffic
from tests.support.fault_record import FaultRecord, Watcher
from tests.support.fault_table import ROOT
from tests.support.file_lock import file_lock
from tests.support.loaded_rig import LoadedRig
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.rig import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.daemon import Daemon
    from tests.support.xds.plane import XdsControlPlane

# Seconds until it serves again; a busy host needs more than a fault costs.
RECOVERED_WITHIN = 90.0
# Kinds of traffic that kumadp itself answers.
OWN = ("readiness", "probes")
# Requests in a row that must be answered afterwards.
_ANSWERED = 10
# Descriptors that come and go with requests.
_PASSING = 6


class FaultRig(LoadedRig):
    """A data plane with relay, names and probes behind the test control plane, with or without mutual TLS."""

    plane: XdsControlPlane

    def __init__(self, folder: Path, plane: XdsControlPlane, load: FaultLoad, *, mtls: bool) -> None:
        super().__init__(folder, plane, load)
        self.fault_load, self.mtls = load, mtls
        self.records: list[FaultRecord] = []
        self.prefix: tuple[str, ...] = ()
        """What is put before the command line of kumadp."""
        self.environment: dict[str, str] = {}
        """Its environment, beside the usual one."""
        plane.serve_names(self.ports.envoy_dns, {NAME_QUERIED: ["127.0.0.1"]})
        if mtls:
            plane.use_mtls()
            plane.issue_client(folder)
        self.with_probes()

    @contextlib.contextmanager
    def up(self, *more: str, ready: bool = True, **how: Any) -> Iterator[Daemon]:
        """Run a data plane that serves, with names; its children outlive it unless flags override that."""
        how = {"dns": True, "prefix": self.prefix, "environment": self.environment, **how}
        with super().up("--log-format=json", *more, ready=ready, **how) as daemon:
            yield daemon

    @property
    def traffic(self) -> Traffic:
        """Where traffic is sent."""
        ports = self.ports
        to = {
            "inbound": ports.inbound,
            "outbound": ports.outbound,
            "names": ports.dns,
            "readiness": ports.readiness,
            "probes": ports.probes,
        }
        return Traffic(to, str(self.folder) if self.mtls else "")

    @contextlib.contextmanager
    def fault(self, name: str, *, traffic: bool = True, ends: bool = False) -> Iterator[FaultRecord]:
        """Have something go wrong in the block; the record is complete when it is left.

        Traffic is answered when the block begins (without ``traffic`` there is none: nothing serves yet), and goes on
        until it is answered again, or with ``ends`` until kumadp has ended. In the block another kumadp may be run.
        """
        record = FaultRecord(name, self.mtls)
        with contextlib.ExitStack() as stack:
            before = self._pids()
            descriptors = self._descriptors()
            if traffic:
                if not os.environ.get("KUMADP_FAULTS"):
                    # Other tests run at the same time, and two loads would measure the host.
                    stack.enter_context(file_lock("load"))
                self.fault_load.begin(self.traffic)
            watcher = Watcher(record, NAME, lambda: self.daemon)
            try:
                yield record
                if ends:
                    self._wait_end(record)
                else:
                    self._wait_recovered(record)
            finally:
                watcher.stop()
                record.traffic = self.fault_load.end() if traffic else {}
            record.envoys = (before, self._pids())
            after = self._settled_descriptors(descriptors) if not ends else 0
            record.descriptors = (descriptors, after)
            # The table has no paths of this host.
            hidden = (str(self.folder), f"{need_envoy().parent}/", f"{ROOT}/")
            for path in hidden:
                record.log = [line.replace(path, "") for line in record.log]
            self.records.append(record)

    def _wait_end(self, record: FaultRecord) -> None:
        record.exit_code = self.last.wait(RECOVERED_WITHIN)

    def _wait_recovered(self, record: FaultRecord) -> None:
        daemon = self.last
        try:
            poll(lambda: self._serves_all(daemon), what="serving again", deadline=RECOVERED_WITHIN)
            for _ in range(_ANSWERED):
                poll(self.serves, what="traffic again")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{record}\n{daemon.output()}") from error
        record.serving = True

    def _serves_all(self, daemon: Daemon) -> bool:
        with contextlib.suppress(OSError):
            status = self.status(daemon)
            envoy = status["children"].get("envoy", {}).get("state")
            ready = (status["phase"], status["ready"], envoy) == ("READY", True, "RUNNING")
            # One more may still drain.
            ready = ready and len(self.envoys()) == 1
            return ready and self.serves() and get(self.ports.probes, "/app/healthz")[0] == 200
        return False

    def _pids(self) -> list[int]:
        return [envoy.pid for envoy in self.envoys()]

    def _descriptors(self) -> int:
        if self.daemon is None or self.daemon.process.poll() is not None:
            return 0
        return psutil.Process(self.daemon.pid).num_fds()

    def _settled_descriptors(self, before: int) -> int:
        """Return the number once it is about what it was; what a fault leaves open stays."""
        with contextlib.suppress(AssertionError):
            poll(lambda: not before or self._descriptors() <= before + _PASSING, what="descriptors", deadline=30.0)
        return self._descriptors()


@contextlib.contextmanager
def open_fault_rig(*, mtls: bool) -> Iterator[FaultRig]:
    """A rig with its control plane; nothing of it outlives the block."""
    with contextlib.ExitStack() as stack:
        # Names of Unix sockets are short.
        folder = Path(tempfile.mkdtemp(prefix="k"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        plane: Any = stack.enter_context(open_plane("test", folder))
        rig = FaultRig(folder, plane, stack.enter_context(FaultLoad()), mtls=mtls)
        stack.callback(rig.end)
        yield rig


def end_by(process: psutil.Process, number: int) -> None:
    """Send a signal that ends a process, and wait for its end."""
    process.send_signal(number)
    poll(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, what="its end", deadline=60.0)


def _nothing(_rig: FaultRig) -> None:
    pass


@dataclass(frozen=True)
class Row:
    """A fault that a running data plane survives, or with ``exit_code`` ends with.

    ``act`` makes it happen. ``reported`` is a regex for a log line of WARNING or above, a state or a warning of the
    status. ``loses`` are the kinds of traffic of which something may be lost; of the others nothing is. ``flags`` are
    those of `kumadp run`, ``prepare`` is called before it is started. ``often``: `make test` runs it too, without mTLS.
    """

    name: str
    act: Callable[[FaultRig], object]
    reported: str = ""
    loses: tuple[str, ...] = ("inbound", "outbound", "names")
    exit_code: int | None = None
    flags: tuple[str, ...] | Callable[[FaultRig], tuple[str, ...]] = ()
    prepare: Callable[[FaultRig], object] = _nothing
    often: bool = False

    def run(self, rig: FaultRig) -> None:
        """Run kumadp, let it happen, check what became of it, and stop kumadp."""
        self.prepare(rig)
        flags = self.flags(rig) if callable(self.flags) else self.flags
        with rig.up(*flags) as daemon:
            with rig.fault(self.name, ends=self.exit_code is not None) as record:
                self.act(rig)
            self.check(record, daemon)
            if self.exit_code is None:
                daemon.terminate()
                assert daemon.wait() == ExitCode.OK, daemon.output()
        assert rig.envoys() == []
        assert rig.leftovers() == []

    def check(self, record: FaultRecord, daemon: Daemon) -> None:
        """Compare the record with what is expected."""
        # Nothing answers after the end.
        surely = [kind for kind in record.traffic if kind not in self.loses and self.exit_code is None]
        lost = {kind: record.traffic[kind].failures for kind in surely if record.traffic[kind].lost}
        assert lost == {}, f"{record}\n{daemon.output()}"
        if self.reported:
            record.expected = record.reported(self.reported)
            assert record.expected, f"not reported: {self.reported}\n{record}\n{daemon.output()}"
        assert record.exit_code == self.exit_code, record
        if self.exit_code is None:
            before, after = record.descriptors
            assert after <= before + _PASSING, f"{after} descriptors instead of {before}"
            assert len(record.envoys[1]) == 1, record


def _modes(often: bool) -> Iterator[tuple[bool, Any]]:
    """Both values of the fixture `fault_rig`; `make test` runs the first, which costs less, if ``often``, else none."""
    for mtls in (False, True):
        yield mtls, () if often and not mtls else pytest.mark.faults


def fault_rows(rows: Sequence[Row]) -> pytest.MarkDecorator:
    """Make of a test with the parameters ``row`` and ``fault_rig`` one test for each row, without and with mTLS."""
    cases = [
        pytest.param(row, mtls, id=f"{row.name}-{'mtls' if mtls else 'plain'}", marks=marks)
        for row in rows
        for mtls, marks in _modes(row.often)
    ]
    return pytest.mark.parametrize(("row", "fault_rig"), cases, indirect=["fault_rig"])


def with_and_without_mtls(*, often: bool = False) -> pytest.MarkDecorator:
    """Run a test with the fixture `fault_rig` without and with mTLS; with ``often`` `make test` runs it without."""
    cases = [pytest.param(mtls, id="mtls" if mtls else "plain", marks=marks) for mtls, marks in _modes(often)]
    return pytest.mark.parametrize("fault_rig", cases, indirect=True)
