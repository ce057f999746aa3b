"""The test control plane itself."""

from __future__ import annotations

import copy
import functools
import json
import ssl
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import trustme
from grpclib import Status
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server

from tests.support.scripted_control_plane import TOKEN, Answer, bootstrap_answer
from tests.support.xds import mesh as meshes
from tests.support.xds.bootstrap import bootstrap
from tests.support.xds.delta import DeltaStream
from tests.support.xds.faults import Faults
from tests.support.xds.front import Connection, Front
from tests.support.xds.journal import Journal, Kind
from tests.support.xds.loop import LoopThread
from tests.support.xds.mesh import Mesh
from tests.support.xds.nodes import Registry
from tests.support.xds.profiles import Service, profile_of
from tests.support.xds.refusals import refusal
from tests.support.xds.resources import LISTENER, dns_listener
from tests.support.xds.streams import AdsStream, DiscoveryStream, HdsStream, OneStream, Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from grpclib.protocol import H2Protocol
    from grpclib.server import Stream

    from tests.support.xds.resources import Tree

T = TypeVar("T")
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
DELTA = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
HDS = "/envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck"


class _Raw(CodecBase):
    """Messages as bytes, so that what is no message can be sent too."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class XdsControlPlane:
    """Bootstrap, ADS and HDS on one port (or two) of loopback, in a separate thread.

    A node is served what its `mesh` holds; one that brings its Dataplane along and has no mesh gets the one that Kuma
    would make of it. ``faults`` controls how it misbehaves, ``journal`` what was seen and done. ``version`` chooses the
    shape of the bootstrap and the protocols that are served (`tests.support.xds.profiles`), ``edit`` changes the
    bootstrap, ``answers`` come in its place while there are any.
    """

    def __init__(
        self,
        *,
        tls: bool = True,
        two_ports: bool = False,
        host: str = "127.0.0.1",
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
        version: str = "2.13.5",
    ) -> None:
        self.faults = Faults()
        self.journal = Journal()
        self.edit: Callable[[Tree], None] = lambda _tree: None
        self.answers: list[Answer] = []
        self.bootstrap_requests: list[Tree] = []
        self.authority = trustme.CA()
        self.tls = tls
        self._names = names
        self._meshes: dict[str, Mesh] = {}
        self._from_dataplanes: dict[str, Tree] = {}
        self._put: dict[str, Tree] = {}
        self._mesh_authority: trustme.CA | None = None
        self._dns: Tree | None = None
        self._registry = Registry(self.faults, self.journal, self._refresh)
        self._shared = Shared(self.faults, self.journal, self._registry, profile_of(version))
        self._version = version
        self._context = self._make_context(names) if tls else None
        self._thread = LoopThread("test control plane")
        self._fronts = self._thread.call(functools.partial(self._open, host, two_ports))

    def _make_context(self, names: tuple[str, ...]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names).configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def _open(self, host: str, two_ports: bool) -> list[Front]:
        server = Server([self], codec=_Raw())

        def protocol() -> H2Protocol:
            connection: H2Protocol = server._protocol_factory()
            return connection

        if two_ports:
            return [Front(host, self._context, self._http, None), Front(host, self._context, None, protocol)]
        return [Front(host, self._context, self._http, protocol)]

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib serves."""
        return {
            ADS: Handler(functools.partial(self._serve, AdsStream), Cardinality.STREAM_STREAM, bytes, bytes),
            DELTA: Handler(functools.partial(self._serve, DeltaStream), Cardinality.STREAM_STREAM, bytes, bytes),
            HDS: Handler(functools.partial(self._serve, HdsStream), Cardinality.STREAM_STREAM, bytes, bytes),
        }

    async def _serve(self, kind: type[OneStream], stream: Stream[bytes, bytes]) -> None:
        await kind(self._shared, stream).run()

    def _http(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if urlsplit(path).path != "/bootstrap":
            return Answer(404)
        request: Tree = json.loads(body)
        self.bootstrap_requests.append(request)
        if self.answers:
            return self.answers.pop(0)
        if (refused := refusal(request, self._shared.profile)) is not None:
            return refused
        host = urlsplit(f"//{headers['host']}").hostname or ""
        turn = len(self.bootstrap_requests)
        tree = bootstrap(request, self.version, host, self.xds_port, tls=self.tls, turn=turn)
        self.edit(tree)
        return bootstrap_answer(tree)

    # What a data plane needs.

    @property
    def version(self) -> str:
        """Which version of Kuma this is for streams that open and bootstraps that are requested from now on."""
        return self._version

    @version.setter
    def version(self, version: str) -> None:
        def change() -> None:
            self._version, self._shared.profile = version, profile_of(version)
            self._forget_derived()

        self._thread.call(change)

    @property
    def port(self) -> int:
        return self._fronts[0].port

    @property
    def xds_port(self) -> int:
        return self._fronts[-1].port

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}"

    @property
    def ca(self) -> str:
        """The CA as PEM."""
        return self.authority.cert_pem.bytes().decode()

    def write_ca(self, path: Path) -> Path:
        """Write the CA into a file."""
        path.write_text(self.ca)
        return path

    def renew_certificate(self, authority: trustme.CA) -> None:
        """Show new connections a certificate of another CA; those there are go on."""
        self.authority = authority
        assert self._context is not None
        authority.issue_cert(*self._names).configure_cert(self._context)

    def token(self, mesh: str = "default", name: str = "") -> str:
        """Return a token for a data plane; any is accepted unless ``faults.refuse_token`` rejects it."""
        return TOKEN

    # What it serves.

    def mesh(self, node: str) -> Mesh:
        """The mesh of a node (``<mesh>.<name>``), empty at first; changes reach open streams at once."""
        return self._meshes.setdefault(node, Mesh(self._apply))

    def put_dataplane(self, dataplane: Tree) -> None:
        """Put a Dataplane into the mesh, which no data plane brings along."""
        self._put[f"{dataplane['mesh']}.{dataplane['name']}"] = dataplane
        self._apply()

    def delete_dataplane(self, mesh: str, name: str) -> None:
        """Take it away."""
        del self._put[f"{mesh}.{name}"]
        self._apply()

    def use_mtls(self) -> None:
        """Use mutual TLS between all data planes whose mesh is derived from their Dataplane."""

        def change() -> None:
            self._mesh_authority = trustme.CA()
            self._forget_derived()
            self._refresh()

        self._thread.call(change)

    def issue_client(self, folder: Path) -> None:
        """Write ``client.pem`` (certificate and key) and ``mesh-ca.pem``, for a client of an inbound with mTLS."""
        assert self._mesh_authority is not None
        issued = self._mesh_authority.issue_cert("web.mesh")
        (folder / "client.pem").write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        self._mesh_authority.cert_pem.write_to_path(str(folder / "mesh-ca.pem"))

    def serve_names(self, port: int, names: dict[str, list[str]]) -> None:
        """Give every Envoy whose mesh is derived from its Dataplane a DNS filter on this port of loopback."""

        def change() -> None:
            self._dns = dns_listener(port, names)
            self._forget_derived()
            self._refresh()

        self._thread.call(change)

    def _forget_derived(self) -> None:
        """Derive all meshes again that are derived from Dataplanes."""
        for name in self._from_dataplanes:
            self._meshes.pop(name, None)
        self._from_dataplanes.clear()

    def break_clusters(self, service: str) -> None:
        """Send a cluster of this name that Envoy rejects, wherever there is one."""
        for mesh, cluster in self._with(service):
            mesh.break_cluster(cluster)

    def mend_clusters(self, service: str) -> None:
        """Send a good one again."""
        for mesh, cluster in self._with(service):
            mesh.mend_cluster(cluster)

    def _with(self, service: str) -> list[tuple[Mesh, str]]:
        meshes = list(self._meshes.values())
        return [(mesh, cluster) for mesh in meshes for cluster, name in mesh.services.items() if name == service]

    def renew_versions(self, node: str) -> None:
        """Send all again with the content there is."""

        def renew() -> None:
            self._registry.node(node).renew()
            self._wake()

        self._thread.call(renew)

    def wake(self) -> None:
        """Answer what was left unanswered, after a fault was taken away."""
        self._thread.call(self._wake)

    def _apply(self) -> None:
        self._thread.call(self._refresh)

    def _refresh(self) -> None:
        services: dict[str, list[tuple[str, int]]] = {}
        for name, dataplane in self._dataplanes().items():
            for service, places in meshes.offered(dataplane).items():
                services.setdefault(service, []).extend(places)
            if name not in self._meshes or self._from_dataplanes.get(name, dataplane) != dataplane:
                self._from_dataplanes[name] = copy.deepcopy(dataplane)
                self._meshes[name] = meshes.of_dataplane(
                    dataplane, self._apply, self._shared.profile, self._mesh_authority
                )
                if self._dns is not None:
                    self._meshes[name].trees[LISTENER][self._dns["name"]] = self._dns
        for name, mesh in list(self._meshes.items()):
            node = self._registry.node(name)
            node.serve(mesh.encoded(services))
            node.specifier = mesh.encoded_specifier()
        self._wake()

    def _dataplanes(self) -> dict[str, Tree]:
        nodes = list(self._registry.nodes.values())
        return self._put | {node.name: node.dataplane or {} for node in nodes if node.registered}

    def _wake(self) -> None:
        for stream in self._shared.streams:
            stream.wake()

    # What is there.

    @property
    def registered(self) -> list[str]:
        """Nodes whose Dataplane is in the mesh."""
        return sorted(self._dataplanes())

    def version_of(self, node: str, type_url: str) -> str:
        """The version that is served now."""
        return self._thread.call(lambda: self._registry.node(node).versions.get(type_url, ""))

    def streams(self, node: str | None = None) -> list[int]:
        """Numbers of the open ADS streams of a protocol that is served, of a node or all."""
        return self._thread.call(
            lambda: sorted(s.number for s in self._ads(node) if s.service is Service.ANSWERED),
        )

    def stream(self, node: str) -> str:
        """The ADS stream that serves a node, empty where none."""
        return next((str(number) for number in self.streams(node)), "")

    def rejected(self, node: str) -> int:
        """How many responses a node has rejected."""
        return sum(entry.node == node for entry in self.journal.requests(kind=Kind.NACK))

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return sum(front.accepted for front in self._fronts)

    def _ads(self, node: str | None) -> list[DiscoveryStream]:
        streams = [stream for stream in self._shared.streams if isinstance(stream, DiscoveryStream)]
        return [stream for stream in streams if node in {None, stream.node}]

    # What it does to others.

    def _each(self, objects: Callable[[], Iterable[T]], act: Callable[[T], None]) -> None:
        def run() -> None:
            for item in list(objects()):
                act(item)

        self._thread.call(run)

    def end_streams(
        self, status: Status = Status.UNAVAILABLE, message: str = "closing", node: str | None = None
    ) -> None:
        """End the ADS streams with a status."""
        self._each(lambda: self._ads(node), lambda stream: stream.end((status, message)))

    def reset_streams(self, node: str | None = None) -> None:
        """End the ADS streams by RST_STREAM."""
        self._each(lambda: self._ads(node), lambda stream: stream.end(None))

    def goaway(self) -> None:
        """Send GOAWAY on all connections, which stay open until their streams end."""
        self._each(lambda: [link for front in self._fronts for link in front.connections], Connection.goaway)

    def drop_connections(self, *, reset: bool = True) -> None:
        """Break all connections, by TCP RST by default."""
        self._each(lambda: self._fronts, lambda front: front.drop(reset=reset))

    def deafen(self, deaf: bool = True) -> None:
        """Read nothing from new connections; when it reads again, those are broken."""

        def change(front: Front) -> None:
            front.deaf = deaf
            if not deaf:
                front.drop_held()

        self._each(lambda: self._fronts, change)

    def gone(self) -> None:
        """Refuse connections and break those there are, remembering everything, as behind a broken network."""
        self._each(lambda: self._fronts, Front.gone)

    def back(self) -> None:
        """Listen again, on the same ports."""
        self._each(lambda: self._fronts, Front.back)

    def kill(self) -> None:
        """Die as a process does that keeps its store in memory."""

        def forget() -> None:
            self._put.clear()
            self._registry.forget()

        self.gone()
        self._thread.call(forget)

    def start(self) -> None:
        """Come back after `kill`: no Dataplane known, new versions of all there is."""
        self.back()

    def upgrade(self, version: str) -> None:
        """Stop as Kuma does on SIGTERM (streams end with OK) and start as another version, its store in memory."""
        self.end_streams(Status.OK, "")
        self.kill()
        self.version = version
        self.start()

    def close(self) -> None:
        """Stop serving."""
        self._each(lambda: self._fronts, Front.close)
        self._thread.close()

    def __enter__(self) -> XdsControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
