"""A real control plane (``kuma-cp``), where KUMA_CP names one, in memory and on loopback; its ports are Kuma's own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.file_lock import file_lock
from tests.support.kuma_resources import (
    cluster_of,
    mesh_identity,
    mesh_services,
    permission,
    without_tags,
)
from tests.support.needs import need_kuma_cp
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

API = "http://127.0.0.1:5681"
DATA_PLANE_SERVER = "https://localhost:5678"


@dataclass(frozen=True)
class ControlPlaneFiles:
    """What a data plane needs of a running control plane."""

    ca: Path
    token: Path
    log: Path
    real: KumaControlPlane

    def renew_token(self) -> None:
        """Write a new token into the file, as a token rotation does."""
        self.token.write_text(self.real.token())

    @property
    def arguments(self) -> tuple[str, ...]:
        """Flags that kumadp and kuma-dp both take."""
        return (
            f"--cp-address={DATA_PLANE_SERVER}",
            f"--ca-cert-file={self.ca}",
            f"--dataplane-token-file={self.token}",
        )


def call_api(path: str, body: object = None, token: str = "", method: str | None = None) -> bytes:
    """Send a request to the control plane's API and return the body; raises OSError."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(API + path, data=data, method=method)
    request.add_header("content-type", "application/json")
    if token:
        request.add_header("authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        error.add_note(error.read().decode("utf-8", "replace"))
        raise


def get_json(path: str) -> Any:
    """As `call_api`, decoded; None for 404 or without an answer."""
    with contextlib.suppress(OSError):
        return json.loads(call_api(path))
    return None


def is_healthy(name: str) -> bool | None:
    """Return what the control plane holds of the first inbound; None where it holds nothing."""
    resource = get_json(f"/meshes/default/dataplanes/{name}") or {}
    for inbound in (resource.get("networking") or {}).get("inbound") or ():
        # Up to 2.8 `health`, later `state` too.
        if inbound.get("state") == "NotReady":
            return False
        if "health" in inbound:
            return bool(inbound["health"].get("ready"))
    return None


class KumaControlPlane:
    """A running ``kuma-cp`` with its store in memory; a `tests.support.control_planes.ControlPlane`."""

    url = DATA_PLANE_SERVER

    def __init__(self, binary: Path, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.binary, self.folder = binary, folder
        """What `start` runs, and where it has its certificate."""
        self._environment = environment or {}
        self.log = folder / "cp.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.has_service_tls = False
        """Whether clients use TLS once the control plane knows that a MeshService takes it: up to 5 s later."""
        self._admin = ""
        # Of the Dataplanes that were changed to its form: put again after a start, as its store is in memory.
        self._services: dict[str, dict[str, Any]] = {}
        folder.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """Start and wait for its API."""
        environment = {
            **os.environ,
            "KUMA_ENVIRONMENT": "universal",
            "KUMA_STORE_TYPE": "memory",
            "KUMA_MODE": "zone",
            "KUMA_GENERAL_WORK_DIR": str(self.folder),
            "KUMA_API_SERVER_HTTP_INTERFACE": "127.0.0.1",
            "KUMA_API_SERVER_HTTPS_INTERFACE": "127.0.0.1",
            "KUMA_REPORTS_ENABLED": "false",
            # Otherwise what the API reports of streams is up to 10 s old.
            "KUMA_XDS_SERVER_DATAPLANE_STATUS_FLUSH_INTERVAL": "500ms",
            **self._environment,
        }
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [self.binary, "run"], env=environment, stdout=out, stderr=out, cwd=self.folder
            )
        try:
            self._admin = poll(self._admin_token, what="the control plane's API", deadline=60)
            poll(self.token, what="a data plane token", deadline=30)
            # The plural of 2.8 has a hyphen; 3.0 has no zone ingresses.
            self.by_tags = self.knows("zoneingresses") or self.knows("zone-ingresses")
            poll(self._is_mesh_ready, what="the default mesh", deadline=30)
            for service in self._services.values():
                self.put_resource(service)
        except BaseException:
            self.kill()
            raise

    def _admin_token(self) -> str:
        assert self._process is not None
        assert self._process.poll() is None, f"the control plane ended:\n{self.log.read_text()[-2000:]}"
        with contextlib.suppress(OSError, ValueError):
            return base64.b64decode(json.loads(call_api("/global-secrets/admin-user-token"))["data"]).decode()
        return ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _is_mesh_ready(self) -> bool:
        return get_json("/meshes/default") is not None

    def kill(self) -> None:
        """Kill it with SIGKILL: it forgets everything but its certificate."""
        self._stop(signal.SIGKILL)

    def close(self) -> None:
        """Stop it with SIGTERM."""
        self._stop(signal.SIGTERM)

    def _stop(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def __enter__(self) -> KumaControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ca(self) -> str:
        return (self.folder / "kuma-cp.crt").read_text()

    def write_ca(self, path: Path) -> Path:
        path.write_text(self.ca)
        return path

    def token(self, mesh: str = "default", name: str = "") -> str:
        claims = {"mesh": mesh, "validFor": "72h", "type": "dataplane", **({"name": name} if name else {})}
        with contextlib.suppress(OSError):
            return call_api("/tokens/dataplane", claims, self._admin).decode()
        return ""

    def zone_token(self) -> str:
        """Return a token for ingress and egress; its signing key may come some time after the start."""
        claims = {"zone": "default", "validFor": "72h", "scope": ["ingress", "egress"]}

        def attempt() -> str:
            with contextlib.suppress(OSError):
                return call_api("/tokens/zone", claims, self._admin).decode()
            return ""

        return poll(attempt, what="a zone token", deadline=30)

    def knows(self, resources: str) -> bool:
        """Return whether it has resources of this kind (plural): later versions have more."""
        try:
            call_api(f"/{resources}", token=self._admin)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True

    @property
    def registered(self) -> list[str]:
        listing = get_json("/meshes/default/dataplanes")
        return sorted(f"{entry['mesh']}.{entry['name']}" for entry in (listing or {"items": []})["items"])

    def _subscriptions(self, node: str) -> list[dict[str, Any]]:
        mesh, _, name = node.partition(".")
        overview = get_json(f"/meshes/{mesh}/dataplanes/{name}/_overview") or {}
        subscriptions: list[dict[str, Any]] = (overview.get("dataplaneInsight") or {}).get("subscriptions") or []
        return subscriptions

    def stream(self, node: str) -> str:
        return next((s["id"] for s in self._subscriptions(node) if "disconnectTime" not in s), "")

    def rejected(self, node: str) -> int:
        return sum(
            int((subscription["status"].get("total") or {}).get("responsesRejected", 0))
            for subscription in self._subscriptions(node)
        )

    def put(self, path: str, body: object) -> None:
        """Create or change a resource by the API; raises OSError."""
        call_api(path, body, self._admin, method="PUT")

    def get_secret(self, path: str) -> Any:
        """Return a resource that only an administrator may read; raises OSError."""
        return json.loads(call_api(path, token=self._admin))

    def delete(self, path: str) -> None:
        """Delete a resource by the API; raises OSError."""
        call_api(path, None, self._admin, method="DELETE")

    def put_resource(self, resource: dict[str, Any]) -> None:
        """Create or change a resource of the mesh; raises OSError."""
        kind = resource["type"].lower()
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        self.put(f"/meshes/{resource['mesh']}/{plural}/{resource['name']}", resource)

    def suit(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Return a Dataplane in the form of this version; from 3.0 on its services become MeshServices."""
        if self.by_tags or resource["type"] != "Dataplane":
            return resource
        for service in mesh_services(resource, by_tags=False):
            self._services[service["name"]] = service
            if self._process is not None:
                self.put_resource(service)
        return without_tags(resource)

    def put_dataplane(self, dataplane: dict[str, Any]) -> None:
        self.put_resource(self.suit(dataplane))

    def delete_dataplane(self, mesh: str, name: str) -> None:
        self.delete(f"/meshes/{mesh}/dataplanes/{name}")

    def use_mtls(self) -> None:
        if self.by_tags:
            backend = {"name": "ca-1", "type": "builtin"}
            mtls = {"enabledBackend": "ca-1", "backends": [backend]}
            self.put("/meshes/default", {"type": "Mesh", "name": "default", "mtls": mtls})
        else:
            self.put_resource(mesh_identity())
            self.has_service_tls = True
        # Without a permission no data plane may call another from now on.
        self.permit("Allow")

    def permit(self, action: str) -> None:
        """``Allow`` or ``Deny`` requests between all data planes."""
        self.put_resource(permission(action, by_identity=not self.by_tags))

    def cluster(self, service: str) -> str:
        """Return Envoy's name of a service's cluster, as data planes have it by default."""
        return service if self.by_tags else cluster_of(service)

    def break_clusters(self, service: str) -> None:
        patch = "lbPolicy: RING_HASH\nringHashLbConfig: {minimumRingSize: 100, maximumRingSize: 10}\n"
        modification = {"cluster": {"operation": "Patch", "match": {"name": self.cluster(service)}, "value": patch}}
        spec = {"targetRef": {"kind": "Mesh"}, "default": {"appendModifications": [modification]}}
        self.put(
            f"/meshes/default/meshproxypatches/break-{service}",
            {"type": "MeshProxyPatch", "mesh": "default", "name": f"break-{service}", "spec": spec},
        )

    def mend_clusters(self, service: str) -> None:
        self.delete(f"/meshes/default/meshproxypatches/break-{service}")


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlaneFiles]:
    """A running control plane with everything it writes in ``folder``; one at a time, as its ports are Kuma's own."""
    binary = need_kuma_cp()
    with file_lock("kuma-cp"), KumaControlPlane(binary, folder) as plane:
        (folder / "dp.token").write_text(plane.token())
        yield ControlPlaneFiles(folder / "kuma-cp.crt", folder / "dp.token", plane.log, plane)
