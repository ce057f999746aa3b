"""What every test gets."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import compatibility

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of the test's own; with a short name, since a Unix socket's path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="kt"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


_results: dict[str, str] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note how each test of the contract went; a test with parameters passes where all of them do."""
    report = yield
    counts = item.get_closest_marker("contract") and item.get_closest_marker("kuma_cp")
    if counts and not report.skipped:
        test = item.nodeid.split("[", 1)[0]
        if report.failed or _results.get(test) != "failed":
            _results[test] = "failed" if report.failed else "passed"
    return report


def pytest_sessionfinish() -> None:
    """Store it, where the run says against which control plane it was."""
    version = os.environ.get("KUMADP_COMPATIBILITY")
    if version and _results:
        compatibility.store(version, _results)
