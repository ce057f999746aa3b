"""A control plane to connect to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as control_plane:
        yield control_plane
