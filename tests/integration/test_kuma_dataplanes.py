"""What a real control plane answers to each Dataplane of the table, where KUMA_CP names one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.dataplane_verdicts import judge, table, verdicts
from tests.support.kuma_control_plane import control_plane

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.dataplane_verdicts import Verdict

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]


def test_the_table_is_what_a_real_control_plane_answers(tmp_path: Path) -> None:
    """Of the version whose stored answers are the most alike: binaries need not know their own version."""
    with control_plane(tmp_path) as files:
        seen = judge(files.real, table().items())

    def differences(stored: dict[str, Verdict]) -> dict[str, tuple[Verdict, Verdict]]:
        return {title: (seen[title], verdict) for title, verdict in stored.items() if seen[title] != verdict}

    assert min((differences(stored) for stored in verdicts().values()), key=len) == {}
