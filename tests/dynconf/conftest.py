"""What the tests of dynamic configuration share."""

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
    """Where a socket may be: pytest's own folders have names too long."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder) / SOCKET
