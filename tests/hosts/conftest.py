"""Fixtures that the tests with further hosts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.netns import two_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Hosts


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts, the sidecar's and a neighbour, in network namespaces joined by a cable."""
    with two_hosts() as pair:
        yield pair
