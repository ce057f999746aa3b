"""What every test gets."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of the test's own; with a short name, since a Unix socket's path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="kt"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
