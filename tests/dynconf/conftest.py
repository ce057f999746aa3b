"""Fixtures of the tests of dynamic configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.dynconf import SOCKET

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def short() -> Iterator[Path]:
    """A path short enough for a Unix socket: those of tmp_path may be too long."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder) / SOCKET
