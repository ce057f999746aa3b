"""Facts about the host that are sent to the control plane."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kumadp.host import facts
from kumadp.host.cgroup import oom_file
from kumadp.host.facts import has_ipv6, memory_limit, system_ca_path

if TYPE_CHECKING:
    from pathlib import Path

V1_UNLIMITED = "9223372036854771712"
V1 = "5:cpu:/\n4:cpuset,memory:/pod/app\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "536870912\n"}, 536870912),
        ("0::/\n", {"memory.max": "max\n"}, 0),
        ("0::/\n", {}, 0),
        ("", {}, 0),
        # The unit's own limit, the one of the slice above it, whichever is tighter.
        ("0::/a.slice/k.service\n", {"a.slice/k.service/memory.max": "100\n", "a.slice/memory.max": "max\n"}, 100),
        ("0::/a.slice/k.service\n", {"a.slice/k.service/memory.max": "max\n", "a.slice/memory.max": "70\n"}, 70),
        ("0::/a.slice/k.service\n", {"b.slice/memory.max": "1\n"}, 0),
        # A container without a cgroup namespace: its path is the host's, its limit at the root of what it sees.
        ("0::/kubepods/pod1/c1\n", {"memory.max": "300\n"}, 300),
        (V1, {"memory/memory.limit_in_bytes": V1_UNLIMITED, "memory/pod/app/memory.limit_in_bytes": "900\n"}, 900),
        (V1, {"memory/memory.limit_in_bytes": V1_UNLIMITED}, 0),
        (V1, {"memory/memory.limit_in_bytes": "800\n"}, 800),
        ("nonsense\n", {"memory.max": "-5\n"}, 0),
    ],
)
def test_the_tightest_limit_above_us(tmp_path: Path, own: str, files: dict[str, str], limit: int) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_limit(tmp_path / "own", tmp_path / "cgroup") == limit


def test_a_cgroup_may_have_a_name_of_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(b"0::/\xff\x0b/app\n")
    folder = tmp_path / "cgroup" / os.fsdecode(b"\xff\x0b")
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("4096\n")
    (folder / "memory.events").write_text("oom_kill 0\n")
    assert memory_limit(tmp_path / "own", tmp_path / "cgroup") == 4096
    (tmp_path / "own").write_bytes(b"0::/\xff\x0b\n")
    assert oom_file(tmp_path / "own", tmp_path / "cgroup") == folder / "memory.events"


def test_where_there_are_no_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert memory_limit(tmp_path / "none", tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("addresses", "has"),
    [
        ({"127.0.0.1", "10.0.0.1"}, False),
        ({"127.0.0.1", "::1"}, False),
        ({"127.0.0.1", "::1", "fd00::1"}, True),
        ({"10.0.0.1", "fe80::1"}, True),
        (set(), False),
    ],
)
def test_ipv6_is_an_address_beside_loopback(monkeypatch: pytest.MonkeyPatch, addresses: set[str], has: bool) -> None:
    monkeypatch.setattr(facts, "local_addresses", lambda: addresses)
    assert has_ipv6() is has


def test_the_first_ca_bundle_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = tuple(str(tmp_path / name) for name in ("debian", "fedora", "alpine"))
    monkeypatch.setattr(facts, "CA_BUNDLES", places)
    assert system_ca_path() == ""
    (tmp_path / "alpine").write_text("")
    assert system_ca_path() == places[2]
    (tmp_path / "debian").mkdir()
    (tmp_path / "fedora").write_text("")
    assert system_ca_path() == places[1]
