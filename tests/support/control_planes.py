"""One interface for the tests' own control plane and a real ``kuma-cp``, so that one suite runs against both."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.support.file_lock import file_lock
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.kuma_resources import without_tags
from tests.support.needs import need_kuma_cp
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.profiles import Tags, profile_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = [pytest.param("test", id="test-cp"), pytest.param("kuma", id="kuma-cp", marks=pytest.mark.kuma_cp)]
# Tests that take the fixture `plane`, or one that rests on it, run against each of them.
on_both_control_planes = pytest.mark.parametrize("plane", KINDS, indirect=True)


class ControlPlane(Protocol):
    """A running control plane with its store in memory. Nodes are named ``<mesh>.<name>``."""

    @property
    def url(self) -> str:
        """For ``--cp-address``."""

    @property
    def ca(self) -> str:
        """Its CA, PEM."""

    def write_ca(self, path: Path) -> Path:
        """Write the CA into a file."""

    def token(self, mesh: str = "default", name: str = "") -> str:
        """A data plane token, new after `start`."""

    @property
    def registered(self) -> list[str]:
        """Nodes whose Dataplane is in the mesh."""

    def stream(self, node: str) -> str:
        """Return the id of the ADS stream that serves a node now, empty if none."""

    def rejected(self, node: str) -> int:
        """Return how many responses a node has rejected."""

    def put_dataplane(self, dataplane: dict[str, Any]) -> None:
        """Put a Dataplane into the mesh that no data plane registers itself."""

    def delete_dataplane(self, mesh: str, name: str) -> None:
        """Delete it."""

    def use_mtls(self) -> None:
        """Mutual TLS between all data planes."""

    def break_clusters(self, service: str) -> None:
        """Send a cluster of this name that Envoy rejects."""

    def mend_clusters(self, service: str) -> None:
        """Send a good one again."""

    def kill(self) -> None:
        """End it as SIGKILL does; everything but its certificate is forgotten."""

    def start(self) -> None:
        """Start it again after `kill`, on the same port."""


@contextlib.contextmanager
def open_plane(kind: str, folder: Path) -> Iterator[ControlPlane]:
    """A control plane of a kind of `KINDS`; real ones run one at a time, as their ports are fixed."""
    if kind == "test":
        with XdsControlPlane() as plane:
            yield plane
        return
    binary = need_kuma_cp()
    with file_lock("kuma-cp"), KumaControlPlane(binary, folder / "kuma-cp") as real:
        yield real


def suited(plane: ControlPlane, dataplane: dict[str, Any]) -> dict[str, Any]:
    """Return a Dataplane in the form that the control plane takes."""
    if isinstance(plane, XdsControlPlane):
        takes_tags = profile_of(plane.version).tags is not Tags.IGNORED
        return dataplane if takes_tags else without_tags(dataplane)
    return plane.suit(dataplane) if isinstance(plane, KumaControlPlane) else dataplane
