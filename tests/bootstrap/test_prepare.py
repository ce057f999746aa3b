"""Which regexes of stat tags are in the bootstrap that Envoy gets, and which in the one that is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.prepare import Fetched, Target, prepare_fetched
from kumadp.bootstrap.stat_tags import REWRITTEN
from kumadp.host.work_dir import open_work_dir
from kumadp.settings.model import Settings

CAPTURE = Path(__file__).resolve().parents[1] / "data" / "captures" / "kuma-2.13.5" / "full" / "bootstrap.yaml"


def regexes(tree: dict[str, Any]) -> list[str]:
    return [tag["regex"] for tag in tree["statsConfig"]["statsTags"]]


@pytest.mark.parametrize("relay", ["xds.sock", None], ids=["relay", "no relay"])
@pytest.mark.parametrize("mode", ["fast", "as-sent"])
async def test_envoy_gets_the_tags_of_the_setting(tmp_path: Path, mode: str, relay: str | None) -> None:
    work = open_work_dir("web", str(tmp_path / "work"), "", "", {})
    fetched = Fetched(parse_bootstrap(CAPTURE.read_bytes()), None, 0.0)
    original = copy.deepcopy(fetched.tree)
    settings = replace(Settings(), stat_tags=mode)
    path = work.path / relay if relay else None
    prepared = await prepare_fetched(fetched, settings, Target(work, ()), relay=path)
    written = json.loads(prepared.config_path.read_bytes())
    sent = regexes(original)
    assert regexes(written) == ([REWRITTEN.get(regex, regex) for regex in sent] if mode == "fast" else sent)
    # What is compared with later bootstraps, and written to disk for the next kumadp, stays as it was sent.
    assert prepared.fetched is fetched
    assert fetched.tree == original
    work.close()


@pytest.mark.parametrize("sent", [None, {"enableDeferredCreationStats": False}], ids=["not sent", "sent"])
@pytest.mark.parametrize("deferred", [False, True], ids=["at once", "deferred"])
async def test_stats_are_deferred_by_the_setting(tmp_path: Path, deferred: bool, sent: dict[str, Any] | None) -> None:
    work = open_work_dir("web", str(tmp_path / "work"), "", "", {})
    tree = parse_bootstrap(CAPTURE.read_bytes()) | ({"deferredStatOptions": sent} if sent else {})
    settings = replace(Settings(), deferred_stats=deferred)
    prepared = await prepare_fetched(Fetched(tree, None, 0.0), settings, Target(work, ()), relay=None)
    written = json.loads(prepared.config_path.read_bytes())
    expected = sent or ({"enableDeferredCreationStats": True} if deferred else None)
    assert written.get("deferredStatOptions") == expected
    assert tree.get("deferredStatOptions") == sent
    work.close()
