"""What a real control plane answers to each Dataplane of the table, and to the samples, where KUMA_CP names one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from kumadp.errors import ResourceError
from kumadp.resources.load import load_resource_file
from tests.support.command import ROOT
from tests.support.dataplane_verdicts import judge, release, table, verdicts
from tests.support.kuma_control_plane import control_plane

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.dataplane_verdicts import Verdict

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]

SAMPLES = ("dataplane", "dataplane-kuma3", "gateway", "zone-ingress", "zone-egress", "zone-proxy")


def accepted(path: Path, version: str) -> bool:
    try:
        load_resource_file(path, version=version)
    except ResourceError:
        return False
    return True


def test_the_table_and_the_samples_are_judged_as_by_a_real_control_plane(tmp_path: Path) -> None:
    """By that of the version whose stored answers are the most alike: binaries need not know their own version."""
    paths = {name: ROOT / f"configs/{name}.yaml" for name in SAMPLES}
    samples = {name: {"mesh": "", **yaml.safe_load(path.read_text("utf-8"))} for name, path in paths.items()}
    with control_plane(tmp_path) as files:
        seen = judge(files.real, table().items())
        of_samples = judge(files.real, samples.items())

    def differences(stored: dict[str, Verdict]) -> dict[str, tuple[Verdict, Verdict]]:
        return {title: (seen[title], verdict) for title, verdict in stored.items() if seen[title] != verdict}

    version, stored = min(verdicts().items(), key=lambda item: len(differences(item[1])))
    assert differences(stored) == {}
    expected = {name: accepted(path, release(version)) for name, path in paths.items()}
    assert {name: verdict.accepted for name, verdict in of_samples.items()} == expected
