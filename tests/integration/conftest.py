"""Fixtures that the tests of whole data planes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Ports
from tests.support.metrics_exporter import Exporter
from tests.support.standalone import StandaloneStage, workloads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[StandaloneStage]:
    """Files of a standalone mesh: ``web``, whose outbound leads to the first of two running backends."""
    with workloads("web", "first", "second") as servers:
        ready = StandaloneStage(tmp_path / "mesh", Ports.take(), servers)
        ready.write()
        yield ready


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    """A running application that exposes metrics."""
    server = Exporter()
    yield server
    server.shutdown()
    server.server_close()
