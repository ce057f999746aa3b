"""The parts of a run, as they are put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from kumadp.core.context import Context, Inputs
from kumadp.core.part import Part, section_types
from kumadp.core.previous import Previous
from kumadp.daemon.log_levels import LogLevelsPart, LogLevelsSection
from kumadp.daemon.start import Launch, Parts
from kumadp.settings.resolve import resolve
from kumadp.standalone.mesh import read_mesh

if TYPE_CHECKING:
    from pathlib import Path

DATAPLANE = """
type: Dataplane
mesh: default
name: web
networking:
  address: 127.0.0.1
  inbound: [{port: 18080, servicePort: 8080, tags: {kuma.io/service: web}}]
"""


def parts_of(folder: Path, *, standalone: bool) -> list[Part]:
    settings = resolve("run", {"name": "web", "mesh": "default"}, {}).settings
    (folder / "web.yaml").write_text(DATAPLANE)
    mesh = read_mesh(folder / "web.yaml", "web") if standalone else None
    context = Context(Inputs(settings, None, {}, standalone=standalone))
    launch = Launch(lambda: (settings, None), lambda: None, dict, mesh)
    return Parts(context, launch, {}).ordered


@pytest.mark.parametrize("standalone", [False, True])
async def test_each_part_has_a_name_and_a_type_for_what_it_hands_over(tmp_path: Path, standalone: bool) -> None:
    parts = parts_of(tmp_path, standalone=standalone)
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        hands_over = type(part).hand_over is not Part.hand_over
        kind = part.section_type()
        assert (kind is not None) is hands_over, part.name
        if hands_over:
            assert section_types()[part.name] is kind


async def test_envoy_starts_after_what_it_gets_its_configuration_from(tmp_path: Path) -> None:
    names = [part.name for part in parts_of(tmp_path, standalone=False)]
    order = ["control socket", "readiness", "control plane", "relay", "dns", "envoy", "dynamic configuration"]
    assert [name for name in names if name in order] == order


async def test_before_its_start_a_part_has_nothing_and_can_be_killed_and_closed(tmp_path: Path) -> None:
    for part in parts_of(tmp_path, standalone=False):
        part.adopt(Previous())
        assert list(part.children()) == []
        assert isinstance(part.status(), dict)
        assert dict(part.record()) == {}
        part.kill()
        await part.close()
        assert part.child_facts(1) == {}


def test_what_a_part_hands_over_is_read_back_by_the_same_part() -> None:
    settings = resolve("run", {"name": "web", "mesh": "default"}, {}).settings

    def levels() -> LogLevelsPart:
        return LogLevelsPart(Context(Inputs(settings, None, {})), lambda: None, dict)

    first, second = levels(), levels()
    first.level, first.components = "debug", {"relay": "trace"}
    handed = first.hand_over()
    assert handed.content == LogLevelsSection({"level": "debug", "relay": "trace"})
    second.adopt(Previous(sections={first.name: msgspec.msgpack.encode(handed.content)}))
    assert second.hand_over() == handed
    second.components = {}
    second.level = ""
    second._set_ours({"relay": "trace"})
