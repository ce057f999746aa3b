"""Fixtures of the tests of commands."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.instances import Host

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def host() -> Iterator[Host]:
    # Not in tmp_path: the path of a Unix socket may have 107 bytes (unix(7)).
    with tempfile.TemporaryDirectory(prefix="kumadp-") as folder:
        yield Host(Path(folder))
