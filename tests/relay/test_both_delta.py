"""Delta of the test control plane beside that of a real ``kuma-cp``: the same client sees the same habits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import urllib.error
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from grpclib import GRPCError

from tests.support.control_planes import ControlPlane, open_plane, suited
from tests.support.daemon import Ports
from tests.support.kuma_resources import SERVICE, dataplane
from tests.support.poll import poll
from tests.support.xds import delta_client
from tests.support.xds.delta import version_of
from tests.support.xds.delta_client import DeltaClient, open_delta, open_sotw, sotw_refusal, versions_of
from tests.support.xds.envoy import bootstrap_request, fetch_bootstrap
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.profiles import Service, Tags, profile_of, version_by
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from grpclib.client import Channel

    from tests.support.xds.profiles import Profile
    from tests.support.xds.resources import Tree

pytestmark = pytest.mark.process

VERSIONS = [*(pytest.param(version, id=f"test-cp {version}") for version in ("2.8", "2.13", "2.14", "3.0"))]
REAL = pytest.param("kuma", id="kuma-cp", marks=pytest.mark.kuma_cp)
ACTIVE = "there is already an active stream from this node"
numbers = itertools.count(1)


@pytest.fixture(scope="module", params=[*VERSIONS, REAL])
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("plane")
    if request.param == "kuma":
        with open_plane("kuma", folder) as real:
            yield real
        return
    with XdsControlPlane(version=request.param) as plane:
        plane.faults.registering, plane.faults.linger, plane.faults.nack_delay = 0.3, 1.0, 0.5
        yield plane


@dataclass
class Place:
    """A node of a control plane, whose two outbounds lead to services that nobody else has."""

    plane: ControlPlane
    name: str
    services: tuple[str, str]
    node: Any
    token: str
    profile: Profile
    channel: Channel

    @property
    def id(self) -> str:
        return f"default.{self.name}"

    @contextlib.asynccontextmanager
    async def open(self, *, always_node: bool = True) -> AsyncIterator[DeltaClient]:
        async with open_delta(self.channel, self.node, self.token, always_node=always_node) as client:
            yield client

    async def do(self, method: str, *arguments: Any) -> None:
        await asyncio.to_thread(getattr(self.plane, method), *arguments)

    async def put(self, service: str) -> None:
        """Put a Dataplane into the mesh that offers the service."""
        offering = dataplane(f"{service}-{next(numbers)}", service, Ports.take(), 1, probes=False)
        offering["networking"]["outbound"] = []
        await self.do("put_dataplane", offering)

    def cluster(self, clusters: Any, service: str) -> str:
        """Return the name of the service's cluster in a response."""
        (name,) = (resource.name for resource in clusters.resources if service in resource.name)
        return str(name)


def described(plane: ControlPlane, number: int) -> tuple[Tree, tuple[str, str]]:
    services = (f"first{number}x", f"second{number}x")
    ports = Ports.take()
    resource = dataplane(f"dp-{number}", services[0], ports, 1, probes=False)
    resource["networking"]["outbound"].append({"port": ports.probes, "tags": {SERVICE: services[1]}})
    if not isinstance(plane, XdsControlPlane):
        # From 3.0 on a MeshService for the second one too.
        plane.suit(dataplane(f"other-{number}", services[1], ports, 1, probes=False))  # type: ignore[attr-defined]
    return suited(plane, resource), services


@pytest.fixture
async def at(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Place]:
    number = next(numbers)

    def prepare() -> tuple[Tree, tuple[str, str], str, Tree]:
        resource, services = described(plane, number)
        request = bootstrap_request(plane, resource["name"], resource, tmp_path)
        announcing = bootstrap_request(plane, resource["name"], resource, tmp_path, "feature-delta-grpc")
        bootstrap = fetch_bootstrap(plane, request)
        return resource, services, version_by(bootstrap, fetch_bootstrap(plane, announcing)), bootstrap

    resource, services, version, bootstrap = await asyncio.to_thread(prepare)
    token = await asyncio.to_thread(plane.token, "default", resource["name"])
    node = delta_client.node_of(bootstrap["node"])
    async with delta_client.open_channel(plane, urlsplit(plane.url).port or 0) as channel:
        yield Place(plane, resource["name"], services, node, token, profile_of(version), channel)


def need_delta(at: Place) -> None:
    if at.profile.delta is not Service.ANSWERED:
        pytest.skip("this version speaks no Delta")


async def start(client: DeltaClient, at: Place, **known: dict[str, str]) -> dict[str, Any]:
    """Send the first requests of all types, and return the responses to clusters, endpoints and listeners."""
    clusters = await client.exchange(CLUSTER)
    names = [at.cluster(clusters, service) for service in at.services]
    endpoints = await client.exchange(ENDPOINTS, *names)
    listeners = await client.exchange(LISTENER, "*")
    await client.settle()
    return {"clusters": clusters, "endpoints": endpoints, "listeners": listeners}


async def test_what_a_new_stream_is_sent(at: Place) -> None:
    need_delta(at)
    async with at.open() as client:
        sent = await start(client, at)
        assert [response.nonce for response in sent.values()] == ["1", "2", "3"]
        for response in sent.values():
            for resource in response.resources:
                assert resource.version == version_of(resource.resource.SerializeToString())
                assert not resource.aliases
                assert not resource.HasField("ttl")
        assert len(sent["listeners"].resources) >= 3
        first, second = (at.cluster(sent["clusters"], service) for service in at.services)
        assert set(versions_of(sent["endpoints"])) <= {first, second}
        assert first in versions_of(sent["endpoints"])
        assert at.id in at.plane.registered


async def test_changes_of_endpoints_and_of_clusters(at: Place) -> None:
    need_delta(at)
    for service in at.services:
        await at.put(service)
    async with at.open() as client:
        sent = await start(client, at)
        first, second = (at.cluster(sent["clusters"], service) for service in at.services)
        await at.put(at.services[1])
        changed = await client.response(ENDPOINTS)
        assert set(versions_of(changed)) == {second}
        await client.ack(changed)
        await client.settle()
        await at.do("break_clusters", at.services[0])
        clusters = await client.response(CLUSTER)
        assert set(versions_of(clusters)) == {first}
        assert versions_of(clusters)[first] != versions_of(sent["clusters"])[first]
        again = versions_of(await client.response(ENDPOINTS))
        assert set(again) == ({first, second} if at.profile.folds_clusters else {first})
        # The content is the one of before, and so is the version.
        assert again[first] == versions_of(sent["endpoints"])[first]
        # Clusters are frozen: the change back waits for our answer, and cancels out.
        await at.do("mend_clusters", at.services[0])
        await client.request(ENDPOINTS)
        await client.ack(clusters)
        assert versions_of(await _next(client, CLUSTER)) == {first: versions_of(sent["clusters"])[first]}


async def _next(client: DeltaClient, type_url: str) -> Any:
    """Return the next response of a type, with others before it."""
    while (response := await client.response()).type_url != type_url:
        await client.ack(response)
    return response


async def test_names(at: Place) -> None:
    need_delta(at)
    async with at.open() as client:
        sent = await start(client, at)
        first, _second = (at.cluster(sent["clusters"], service) for service in at.services)
        # Known, unknown: neither is answered.
        await client.request(ENDPOINTS, first)
        await client.request(ENDPOINTS, "nobody")
        await client.settle()
        await client.request(ENDPOINTS, unsubscribe=(first,))
        await client.settle()
        await client.request(ENDPOINTS, first)
        assert set(versions_of(await client.response(ENDPOINTS))) == {first}
        # All of a type, without a nonce: answered at once, with nothing new.
        for kind in (CLUSTER, LISTENER):
            await client.request(kind)
            poked = await client.response(kind)
            assert (versions_of(poked), list(poked.removed_resources)) == ({}, [])


async def test_a_rejection_is_counted_and_not_repeated(at: Place) -> None:
    need_delta(at)
    async with at.open() as client:
        sent = await start(client, at)
        first = at.cluster(sent["clusters"], at.services[0])
        await at.do("break_clusters", at.services[0])
        broken = await client.response(CLUSTER)
        endpoints = await client.response(ENDPOINTS)
        await client.ack(broken, error="ring hash: minimum_ring_size (100) > maximum_ring_size (10)")
        await client.ack(endpoints)
        await client.settle()
        await asyncio.to_thread(poll, lambda: at.plane.rejected(at.id) == 1, what="a rejection", deadline=20)
        await client.settle()
        began = time.monotonic()
        await at.do("mend_clusters", at.services[0])
        mended = await client.response(CLUSTER)
        delay = at.plane.faults.nack_delay if isinstance(at.plane, XdsControlPlane) else 5.0
        assert time.monotonic() - began >= delay
        assert versions_of(mended) == {first: versions_of(sent["clusters"])[first]}


async def test_a_new_stream_gets_the_difference(at: Place) -> None:
    need_delta(at)
    async with at.open() as client:
        sent = await start(client, at)
        refused = await sotw_refusal(at.channel, at.node, at.token) if at.profile.sotw is Service.ANSWERED else None
        assert (refused is not None) == (at.profile.sotw is Service.ANSWERED)
        async with at.open() as second:
            await second.request(CLUSTER)
            with pytest.raises(GRPCError, match=ACTIVE):
                await second.response()
        await client.break_off()
    known = {kind: versions_of(response) for kind, response in sent.items()}
    first, second_name = (at.cluster(sent["clusters"], service) for service in at.services)
    del known["clusters"][second_name]
    known["listeners"]["gone"] = "0" * 64
    clusters, client, stack = await _open_when_free(at, known)
    async with stack:
        assert (set(versions_of(clusters)), list(clusters.removed_resources)) == ({second_name}, [])
        again = {first, second_name} & set(known["endpoints"]) if at.profile.folds_clusters else {second_name}
        if second_name not in known["endpoints"]:
            again.discard(second_name)
        if again:
            assert set(versions_of(await client.response(ENDPOINTS))) == again
        listeners = await client.response(LISTENER)
        assert (versions_of(listeners), list(listeners.removed_resources)) == ({}, ["gone"])


async def _open_when_free(at: Place, known: dict[str, dict[str, str]]) -> tuple[Any, DeltaClient, Any]:
    """Open a stream with versions as soon as the node is free; returns the answer for clusters, and what to close."""
    until = time.monotonic() + 30
    while True:
        stack = contextlib.AsyncExitStack()
        client = await stack.enter_async_context(at.open())
        await client.request(CLUSTER, initial=known["clusters"])
        with contextlib.suppress(ConnectionError):
            await client.request(ENDPOINTS, *known["endpoints"], initial=known["endpoints"])
            await client.request(LISTENER, initial=known["listeners"])
        try:
            return await client.response(CLUSTER), client, stack
        except GRPCError as error:
            await stack.aclose()
            if ACTIVE not in str(error.message) or time.monotonic() > until:
                raise
            await asyncio.sleep(0.2)


async def test_node_in_the_first_request_only(at: Place) -> None:
    need_delta(at)
    async with at.open(always_node=False) as client:
        await client.request(CLUSTER)
        await client.response(CLUSTER)
        began = time.monotonic()
        await client.request(LISTENER)
        if not at.profile.node_in_every_request:
            await client.response(LISTENER)
            return
        with pytest.raises(GRPCError, match=r"Received request is for node with ID \. Node ID cannot be changed"):
            await client.response()
        linger = at.plane.faults.linger if isinstance(at.plane, XdsControlPlane) else 9.0
        assert time.monotonic() - began >= linger


async def test_the_protocol_that_is_not_served(at: Place) -> None:
    if at.profile.delta is Service.ANSWERED and at.profile.sotw is Service.ANSWERED:
        pytest.skip("this version serves both")
    request = discovery_pb2.DiscoveryRequest(type_url=CLUSTER, node=at.node)
    # It occupies nothing, and is answered only when the other one serves the node.
    async with at.open() as client, open_sotw(at.channel, at.token) as other:
        if at.profile.delta is Service.ANSWERED:
            await other.send_message(request)
            await client.exchange(CLUSTER)
            assert (await other.recv_message()).resources
            await other.end()
            assert await other.recv_message() is None
        else:
            await client.request(CLUSTER)
            await other.send_message(request)
            assert (await other.recv_message()).resources
            await client.response(CLUSTER)
            await client.finish()
            with pytest.raises(EOFError):
                await client.response()
            await other.cancel()


def refused(plane: ControlPlane, resource: Tree, folder: Path) -> tuple[int, str]:
    """Status and words of the bootstrap of a Dataplane; 200 and its apiType if it is taken."""
    try:
        bootstrap = fetch_bootstrap(plane, bootstrap_request(plane, resource["name"], resource, folder))
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    return 200, bootstrap["dynamicResources"]["adsConfig"]["apiType"]


async def test_bootstraps_that_are_refused(at: Place, tmp_path: Path) -> None:
    def describe() -> Tree:
        return dataplane("refused", "refused", Ports.take(), 1, probes=False)

    reference = {"kind": "MeshService", "name": "refused", "port": 80}
    tagged, both, untagged, gateway = describe(), describe(), describe(), describe()
    both["networking"]["outbound"][0]["backendRef"] = reference
    del untagged["networking"]["inbound"][0]["tags"], untagged["networking"]["outbound"]
    del gateway["networking"]["inbound"], gateway["networking"]["outbound"]
    gateway["networking"]["gateway"] = {"type": "BUILTIN", "tags": {SERVICE: "refused"}}
    answers = {
        name: await asyncio.to_thread(refused, at.plane, resource, tmp_path)
        for name, resource in {"tagged": tagged, "both": both, "untagged": untagged, "gateway": gateway}.items()
    }
    missing = (422, 'networking.inbound[0].tags["kuma.io/service"]: tag has to exist')
    if at.profile.tags is Tags.IGNORED:
        taken = (200, "DELTA_GRPC")
        assert answers == {
            "tagged": (422, "networking.outbound[0].backendRef: must be defined"),
            "both": taken,
            "untagged": taken,
            "gateway": (500, ""),
        }
    else:
        assert answers == {
            "tagged": (200, "GRPC"),
            "both": (422, "networking.outbound[0].backendRef: both backendRef and tags/service cannot be defined"),
            "untagged": missing if at.profile.tags is Tags.NEEDED else (200, "GRPC"),
            "gateway": (200, "GRPC"),
        }
