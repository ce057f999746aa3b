"""A configuration is brought into force in steps, each confirmed by Envoy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.standalone import xds_update
from kumadp.standalone.generated_config import GeneratedConfig
from kumadp.standalone.xds_files import XdsFiles
from kumadp.standalone.xds_update import UpdateRejected, UpdateUnconfirmed, apply
from tests.standalone.envoy_admin import FakeAdmin

if TYPE_CHECKING:
    from pathlib import Path


def config(*names: str) -> GeneratedConfig:
    """Return a configuration with a cluster and a listener of each name; a name may have a suffix, as in ``a=2``."""
    generated = GeneratedConfig()
    for text in names:
        name = text.partition("=")[0]
        generated.clusters[name] = {"name": name, "comment": text}
        generated.listeners[name] = {"name": name, "comment": text}
        generated.origin[name] = f"web.yaml:1: {name}"
    return generated


class Rig:
    def __init__(self, folder: Path) -> None:
        self.files = XdsFiles(folder)
        self.admin = FakeAdmin(folder)

    async def apply(self, new: GeneratedConfig, previous: GeneratedConfig) -> bool:
        return await apply(new, previous, self.files, self.admin)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Envoy with the configuration of ``a``."""
    monkeypatch.setattr(xds_update, "APPLIED_WITHIN", 0.2)
    monkeypatch.setattr(xds_update, "WARM_WITHIN", 0.05)
    result = Rig(tmp_path)
    result.files.write("clusters.json", {"resources": []})
    result.files.write("listeners.json", {"resources": []})
    await result.apply(config("a"), config("a"))
    result.admin.applied.clear()
    return result


async def test_clusters_come_before_their_listeners_and_go_after_them(rig: Rig) -> None:
    assert await rig.apply(config("b"), config("a"))
    assert rig.admin.applied == [
        ("clusters.json", ["a", "b"]),
        ("listeners.json", ["b"]),
        ("clusters.json", ["b"]),
    ]


async def test_an_unchanged_configuration_is_not_written(rig: Rig) -> None:
    assert not await rig.apply(config("a"), config("a"))
    assert rig.admin.applied == []


async def test_a_rejected_listener_is_reported_with_its_field(rig: Rig) -> None:
    rig.admin.rejected["b"] = "cannot bind"
    with pytest.raises(UpdateRejected) as rejected:
        await rig.apply(config("a", "b"), config("a"))
    # Here Envoy rejects the cluster, the first of them.
    assert str(rejected.value) == "web.yaml:1: b: Envoy rejected a cluster; its log has the reason"
    listeners_only = config("a", "b")
    del listeners_only.clusters["b"]
    with pytest.raises(UpdateRejected) as rejected:
        await rig.apply(listeners_only, config("a"))
    assert str(rejected.value) == "web.yaml:1: b: rejected by Envoy: cannot bind twice"


@pytest.mark.parametrize("answers", [True, False])
async def test_an_envoy_that_does_not_apply_it_leaves_it_unconfirmed(rig: Rig, answers: bool) -> None:
    rig.admin.answers, rig.admin.applies = answers, False
    message = "has not applied the change" if answers else "does not answer"
    for _ in range(2):
        with pytest.raises(UpdateUnconfirmed, match=message):
            await rig.apply(config("b"), config("a"))
    rig.admin.answers = rig.admin.applies = True
    # Everything was written before, so there is nothing to write any more.
    assert await rig.apply(config("b"), config("a")) in {True, False}
    assert rig.admin.applied[-1] == ("clusters.json", ["b"])


async def test_a_late_rejection_is_reported(rig: Rig) -> None:
    changed = config("a")
    changed.listeners["a"] = {"name": "a", "comment": "changed"}
    rig.admin.applies = False
    with pytest.raises(UpdateUnconfirmed):
        await rig.apply(changed, config("a"))
    rig.admin.rejected["a"] = "cannot bind"
    rig.admin.applies = True
    with pytest.raises(UpdateRejected, match="rejected by Envoy: cannot bind"):
        await rig.apply(changed, config("a"))


async def test_a_warming_cluster_delays_an_update_only_for_a_while(rig: Rig) -> None:
    rig.admin.warming = 1
    assert await rig.apply(config("b"), config("a"))
