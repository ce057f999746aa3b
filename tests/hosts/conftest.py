"""Fixtures that the tests with further hosts share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.netns import two_hosts
from tests.support.nspawn_host import need_nspawn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Hosts


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts, the sidecar's and a neighbour, in network namespaces joined by a cable."""
    with two_hosts() as pair:
        yield pair


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout; tests that use it are in the group "systemd", on one worker."""
    need_nspawn()
    builder = Path(__file__).resolve().parent.parent.parent / ".ci" / "build-deb"
    command = [str(builder), sys.executable, str(tmp_path_factory.mktemp("deb"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())
