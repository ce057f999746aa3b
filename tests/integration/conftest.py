"""Fixtures that the tests of whole data planes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.metrics_exporter import Exporter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    """A running application that exposes metrics."""
    server = Exporter()
    yield server
    server.shutdown()
    server.server_close()
