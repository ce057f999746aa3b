"""Where we run: a host or VM whose children may outlive us, or a container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kumadp.host.environment import container_sign, find_container_sign, resolve_on_parent_death

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST = 4026531836  # readlink /proc/1/ns/pid on any Linux host
OTHER = 4026532841
SYSTEMD = "/run/systemd/system"
# As systemd starts a unit (systemd.exec(5)).
UNIT = {
    "PATH": "/usr/bin",
    "INVOCATION_ID": "0b8d",
    "JOURNAL_STREAM": "8:1",
    "RUNTIME_DIRECTORY": "/run/kumadp",
    "NOTIFY_SOCKET": "/run/systemd/notify",
}


def sign(environ: Mapping[str, str], *files: str, pid: int = 812, namespace: int = FIRST) -> str:
    return container_sign(environ, pid=pid, namespace=namespace, exists=frozenset(files).__contains__)


@pytest.mark.parametrize(
    ("environ", "files", "pid", "namespace"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, (), 812, FIRST),
        ({"POD_NAME": "web", "POD_NAMESPACE": "shop"}, (), 812, FIRST),
        ({}, ("/.dockerenv",), 812, FIRST),
        ({}, ("/run/.containerenv",), 7, OTHER),
        ({"container": "podman"}, (), 7, FIRST),
        ({"container": "lxc"}, (SYSTEMD,), 7, OTHER),
        ({}, (), 1, FIRST),
        ({}, (), 1, 0),
        # containerd without Kubernetes, below a small init
        ({}, (), 7, OTHER),
        # systemd as the first process of a Docker container
        (UNIT, ("/.dockerenv", SYSTEMD), 80, OTHER),
    ],
)
def test_a_container(environ: dict[str, str], files: tuple[str, ...], pid: int, namespace: int) -> None:
    actual = sign(environ, *files, pid=pid, namespace=namespace)
    assert actual
    assert resolve_on_parent_death("auto", actual) == "kill"


@pytest.mark.parametrize(
    ("environ", "files", "namespace"),
    [
        (UNIT, (SYSTEMD,), FIRST),
        ({"PATH": "/bin"}, (), FIRST),  # a VM without systemd
        ({"PATH": "/bin"}, (), 0),  # a kernel without PID namespaces
        (UNIT, (SYSTEMD,), OTHER),  # a unit of an LXC host
        ({"POD_NAME": "web"}, (SYSTEMD,), FIRST),
        ({"container": ""}, (SYSTEMD,), FIRST),
    ],
)
def test_a_vm(environ: dict[str, str], files: tuple[str, ...], namespace: int) -> None:
    assert sign(environ, *files, namespace=namespace) == ""
    assert resolve_on_parent_death("auto", "") == "keep"


@pytest.mark.parametrize("actual", ["", "/.dockerenv"])
def test_the_setting_of_the_user_takes_precedence(actual: str) -> None:
    assert resolve_on_parent_death("kill", actual) == "kill"
    assert resolve_on_parent_death("keep", actual) == "keep"


def test_this_machine_is_inspected() -> None:
    assert find_container_sign({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == "Kubernetes"
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - as plain as can be
    known = container_sign({}, pid=os.getpid(), namespace=namespace, exists=os.path.exists)
    assert find_container_sign({}) == known
