"""Applications that are probed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.applications import FORBIDDEN, Applications, applications

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def apps() -> Iterator[Applications]:
    """Running applications; none may be requested on the port `FORBIDDEN`."""
    with applications(forbidden=FORBIDDEN) as running:
        yield running
