"""Fixtures that tests of several folders share: control planes, rigs, ports and applications."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import compatibility
from tests.support.control_planes import open_plane
from tests.support.daemon import Ports, Workload, workload
from tests.support.loaded_rig import LoadedRig, open_loaded_rig
from tests.support.loggers import preserved_loggers
from tests.support.rig import Rig, open_rig
from tests.support.scripted_control_plane import ScriptedControlPlane, bootstrap_answer, static_bootstrap
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.support.control_planes import ControlPlane


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """The loggers as they are, whatever the test before did to them."""
    with preserved_loggers():
        yield


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of the test's own; with a short name, since a Unix socket's path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="kt"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ports() -> Ports:
    """Free ports of one data plane."""
    return Ports.take()


@pytest.fixture
def app() -> Iterator[Workload]:
    """A running application called ``web``."""
    with workload("web") as server:
        yield server


@pytest.fixture
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ControlPlane]:
    """A running control plane: the tests' own, or both kinds one after the other with `on_both_control_planes`.

    The marker ``linger(seconds)`` changes how long the tests' own keeps a data plane after its stream has ended.
    """
    with open_plane(getattr(request, "param", "test"), tmp_path) as running:
        linger = request.node.get_closest_marker("linger")
        if linger is not None and isinstance(running, XdsControlPlane):
            running.faults.linger = linger.args[0]
        yield running


@pytest.fixture
def scripted_plane(ports: Ports, app: Workload) -> Iterator[ScriptedControlPlane]:
    """A control plane whose only answer is a bootstrap with one inbound, in front of ``app``."""
    with ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as running:
        yield running


@pytest.fixture
def rig(tmp_path: Path, plane: ControlPlane) -> Iterator[Rig]:
    """A data plane behind ``plane``."""
    with open_rig(tmp_path, plane) as ready:
        yield ready


@pytest.fixture
def kuma_rig(tmp_path: Path) -> Iterator[Rig]:
    """A data plane behind a real control plane."""
    with open_rig(tmp_path, "kuma") as ready:
        yield ready


@pytest.fixture
def loaded_rig(plane: ControlPlane) -> Iterator[LoadedRig]:
    """A data plane behind ``plane``, with load on it; its children outlive it."""
    with open_loaded_rig(plane) as ready:
        yield ready


_results: dict[str, str] = {}


def _note_result(test: str, report: pytest.TestReport) -> None:
    """A test with parameters has failed if one did; it is not in the version if none is."""
    if report.failed:
        _results[test] = "failed"
    elif not report.skipped:
        # Set-up and end count only where the test itself did not do otherwise.
        if report.when == "call" and _results.get(test) != "failed":
            _results[test] = "passed"
    elif compatibility.GONE in str(report.longrepr):
        _results.setdefault(test, compatibility.NOT_IN_IT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the result of each contract test; one with parameters passes if all of them do."""
    report = yield
    if item.get_closest_marker("contract") and item.get_closest_marker("kuma_cp"):
        _note_result(item.nodeid.split("[", 1)[0], report)
    return report


def pytest_sessionfinish() -> None:
    """Store the results if the run names the control plane it ran against."""
    version = os.environ.get("KUMADP_COMPATIBILITY")
    if version and _results:
        compatibility.store(version, _results)
