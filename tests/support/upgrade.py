"""A data plane under load whose control plane is replaced by one of another version, on the same port."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme

from tests.support.file_lock import file_lock
from tests.support.kuma_control_plane import KumaControlPlane, get_json
from tests.support.kuma_resources import mesh_identity, mesh_services, permission, with_both
from tests.support.load_process import LoadProcess
from tests.support.loaded_rig import LoadedRig
from tests.support.needs import need_kuma_cp, need_next_kuma_cp
from tests.support.poll import poll
from tests.support.rig import NODE, SOON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Daemon

# Control planes from 2.13 on know Dataplanes that 3.0 knows too, up to 2.12 only tags.
WITH_SERVICES = "meshidentities"


@dataclass
class Versions:
    """The two programs."""

    old: Path
    new: Path

    @classmethod
    def named(cls) -> Versions:
        """Those that the environment names; skips the test without both."""
        return cls(need_kuma_cp(), need_next_kuma_cp())


class UpgradeRig(LoadedRig):
    """A data plane whose Dataplane suits both versions, and whose mesh is put into each control plane that starts."""

    kuma: KumaControlPlane

    def __init__(self, folder: Path, plane: KumaControlPlane, pressure: LoadProcess, versions: Versions) -> None:
        self.kuma, self.versions = plane, versions
        self.mtls = False
        super().__init__(folder, plane, pressure)
        self.by_services = plane.knows(WITH_SERVICES)
        self.tagged = self.dataplane
        if self.by_services:
            self.dataplane = with_both(self.tagged)

    def write_dataplane(self) -> None:
        self.file.write_text(json.dumps(self.dataplane))

    def put_mesh(self) -> None:
        """Put into the control plane what is not the data plane's own: a store on disk would have it."""
        if not self.by_services:
            return
        if self.kuma.by_tags:
            exclusive = {"meshServices": {"mode": "Exclusive"}}
            self.kuma.put("/meshes/default", {"type": "Mesh", "name": "default", **exclusive})
        for service in mesh_services(self.tagged, by_tags=self.kuma.by_tags):
            self.kuma.put_resource(service)
        if self.mtls:
            self.kuma.put_resource(mesh_identity(authority=self._authority()))
            self.kuma.put_resource(permission("Allow", by_identity=True))
            poll(self._is_trusted, what="a MeshTrust", deadline=SOON)

    def _authority(self) -> tuple[Path, Path]:
        """Return files of the mesh's CA, which both control planes have: a store on disk would have it."""
        certificate, key = self.folder / "mesh-ca.pem", self.folder / "mesh-ca.key"
        if not key.exists():
            authority = trustme.CA()
            authority.cert_pem.write_to_path(certificate)
            authority.private_key_pem.write_to_path(key)
        return certificate, key

    def _is_trusted(self) -> bool:
        return bool(_items("meshtrusts"))

    def wait_tls(self) -> None:
        """Wait until clients are to use TLS, which a store on disk would have.

        Until it knows that of a MeshService, up to 5 s after its start, Kuma has clients send plain HTTP to inbounds
        that only take TLS (2.14 and 3.0): 503 for every request, whatever the data plane does.
        """

        def is_ready() -> bool:
            services = _items("meshservices")
            return bool(services) and all(map(_is_tls_ready, services))

        poll(is_ready, what="TLS for all services", deadline=SOON)

    def replace_plane(self, binary: Path, folder: Path | None = None) -> None:
        """Replace the control plane by another version, with the mesh in it; it takes no token of the former one.

        ``folder``: a new one, so that its certificate and CA are new too.
        """
        self.kuma.close()
        self.start_plane(binary, folder)

    def start_plane(self, binary: Path, folder: Path | None = None) -> None:
        """Start the other version after the former one was closed."""
        self.kuma.binary = binary
        if folder is not None:
            folder.mkdir()
            self.kuma.folder = folder
        self.kuma.start()
        self.put_mesh()
        # A store on disk would have it, and the endpoints that follow from it.
        with contextlib.suppress(urllib.error.HTTPError):
            self.kuma.put_resource(self.dataplane)
        if self.mtls:
            self.wait_tls()

    def wait_registered(self, daemon: Daemon) -> float:
        """Wait until the data plane is registered and all is acknowledged; return seconds until the former."""
        since = time.monotonic()
        poll(self.is_registered, what="the data plane registered", deadline=SOON)
        took = time.monotonic() - since
        # Until the first response the status has what the former control plane sent.
        self.wait_state(daemon, "open")
        poll(lambda: self.settled(daemon), what="everything acknowledged", deadline=SOON)
        return took

    def is_registered(self) -> bool:
        """Return whether the control plane has the Dataplane and a stream of it."""
        return self.kuma.registered == [NODE] and bool(self.kuma.stream(NODE))


@contextlib.contextmanager
def open_upgrade(*, mtls: bool = False) -> Iterator[UpgradeRig]:
    """A rig with the old version running, its mesh in it."""
    versions = Versions.named()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k")))
        stack.enter_context(file_lock("kuma-cp"))
        plane = stack.enter_context(KumaControlPlane(versions.old, folder / "kuma-cp"))
        rig = UpgradeRig(folder, plane, stack.enter_context(LoadProcess()), versions)
        stack.callback(rig.end)
        rig.mtls = mtls and rig.by_services
        rig.put_mesh()
        if rig.mtls:
            rig.wait_tls()
        yield rig


def _items(resources: str) -> list[dict[str, Any]]:
    """Return all resources of the mesh of a kind (plural)."""
    items: list[dict[str, Any]] = (get_json(f"/meshes/default/{resources}") or {"items": []})["items"]
    return items


def _is_tls_ready(service: dict[str, Any]) -> bool:
    return ((service.get("status") or {}).get("tls") or {}).get("status") == "Ready"
