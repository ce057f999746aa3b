"""The Debian package in a tree that has nothing but Debian: installed, run, removed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.needs import need_program
from tests.support.nspawn_host import in_tree

pytestmark = [pytest.mark.process, pytest.mark.timeout(600), pytest.mark.xdist_group("systemd")]

SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")


def clean_tree(folder: Path) -> Path:
    """Debian's smallest system with what the package depends on, and no more."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("ID") != "debian":
        pytest.skip("this host is not Debian: no tree of its release can be made")
    sources = next((name for name in SOURCES if Path(name).exists()), None)
    if sources is None:
        pytest.skip("no sources of packages are named on this host")
    suite = release["VERSION_CODENAME"].strip('"')
    tree = folder / "tree"
    # In /tmp pytest's folders are for their owner alone, which mmdebstrap's helper is not.
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=systemd,python3,procps"]
    slim = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    subprocess.run([*command, *slim, suite, str(tree), sources], check=True, timeout=400)
    return tree


def test_it_is_installed_run_and_removed_in_a_clean_tree(tmp_path: Path, package: Path) -> None:
    need_program("mmdebstrap", "mmdebstrap")
    listed = subprocess.run(["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True).stdout
    for name in (
        "share/man/man1/kumadp.1.gz",
        "share/man/man5/kumadp.yaml.5.gz",
        "share/bash-completion/completions/kumadp",
        "share/zsh/vendor-completions/_kumadp",
        "share/fish/vendor_completions.d/kumadp.fish",
    ):
        assert f"./usr/{name}\n" in listed
    tree = clean_tree(tmp_path)
    before = {str(path.relative_to(tree)) for path in (tree / "usr").rglob("*")}
    (tree / "root" / package.name).write_bytes(package.read_bytes())
    in_tree(tree, "dpkg", "--install", f"/root/{package.name}")
    version = package.name.split("_")[1]
    assert in_tree(tree, "kumadp", "version").strip() == version
    assert "kumadp" in in_tree(tree, "id", "kumadp")
    checked = in_tree(tree, "kumadp", "demo", "--check")
    assert [line for line in checked.splitlines() if not line.startswith("ok ")] == []
    in_tree(tree, "dpkg", "--purge", "kumadp")
    after = {str(path.relative_to(tree)) for path in (tree / "usr").rglob("*")}
    assert {path for path in after - before if "kumadp" in path} == set()
    assert not (tree / "etc/kumadp").exists()
