"""The table of meshes that standalone mode must serve: ours is ``web``, in the folder that is given."""

from __future__ import annotations

from dataclasses import dataclass

from kumadp.standalone.generated_config import DnsListener
from tests.support.mesh import Tree, dataplane, inbound, outbound, reference, untagged

PROBE: Tree = {"tcp": {}}


@dataclass(frozen=True)
class Case:
    """Dataplanes, where DNS listens, and the inbounds whose application is down."""

    dataplanes: tuple[Tree, ...]
    dns: DnsListener | None = None
    unhealthy: frozenset[tuple[str, int]] = frozenset()


def ours(*outbounds: Tree, inbounds: list[Tree] | None = None, **more: object) -> Tree:
    return dataplane("web", inbounds or [inbound(18080, 8080)], list(outbounds), admin=19901, **more)  # type: ignore[arg-type]


def of_protocol(protocol: str) -> Case:
    """An inbound of ours and an endpoint of another, both of one protocol."""
    mine = ours(outbound(10001, "backend"), inbounds=[inbound(18080, 8080, protocol=protocol)], address="10.0.0.1")
    return Case((mine, dataplane("backend", [inbound(7000, 7001, "backend", protocol)], address="10.0.0.2")))


def _other(name: str, port: int, address: str = "10.0.0.2", protocol: str = "http", **more: object) -> Tree:
    networking: Tree = {"advertisedAddress": more.pop("advertised")} if "advertised" in more else {}
    return dataplane(
        name, [inbound(port, 1, "backend", protocol, **more)], address=address, admin=9902, networking=networking
    )


CASES: dict[str, Case] = {
    **{f"protocol {name or 'none'}": of_protocol(name) for name in ("tcp", "http", "http2", "grpc", "kafka", "")},
    "IPv6": Case(
        (
            ours(outbound(10001, "backend", "::1"), address="fd00::1"),
            _other("backend", 7000, "fd00::2", serviceProbe=PROBE),
        ),
        DnsListener("127.0.0.1", 15053),
    ),
    "several inbounds": Case(
        (
            ours(
                inbounds=[
                    inbound(18080, 8080),
                    inbound(18081, 8080, "admin", "tcp", address="10.0.0.3"),
                    inbound(18082, 9090, "api", "grpc"),
                    inbound(18083, 9091, "off", state="Ignored"),
                ],
                address="10.0.0.1",
            ),
        )
    ),
    "delegated gateway": Case(
        (
            dataplane(
                "web",
                [],
                [outbound(10001, "backend")],
                networking={"gateway": {"tags": {"kuma.io/service": "edge"}}},
            ),
            _other("backend", 7000),
        )
    ),
    "serviceProbe": Case(
        (
            ours(outbound(10001, "backend"), inbounds=[inbound(18080, 8080, serviceProbe=PROBE)], address="10.0.0.1"),
            _other("one", 7000, serviceProbe=PROBE),
            _other("two", 7000, "10.0.0.3"),
        )
    ),
    "unhealthy": Case(
        (ours(inbounds=[inbound(18080, 8080, serviceProbe=PROBE)], address="10.0.0.1"),),
        unhealthy=frozenset({("10.0.0.1", 18080)}),
    ),
    "subset tags": Case(
        (
            ours(
                outbound(10001, "backend"), outbound(10002, "backend", version="2"), outbound(10003, "backend", a="b")
            ),
            _other("one", 7000, tags={"version": "1"}),
            _other("two", 7000, "10.0.0.3", tags={"version": "2"}),
        )
    ),
    "advertisedAddress": Case((ours(outbound(10001, "backend")), _other("one", 7000, advertised="192.0.2.1"))),
    "host names": Case(
        (
            ours(outbound(10001, "backend"), address="localhost"),
            _other("one", 7000, "backend.example"),
            _other("two", 7000, "10.0.0.3", serviceProbe=PROBE),
        )
    ),
    "Prometheus": Case(
        (ours(metrics={"type": "prometheus", "conf": {"port": 1234, "path": "/m"}}, address="10.0.0.1"),),
    ),
    "Prometheus by default": Case((ours(metrics={"type": "prometheus"}),)),
    "DNS without resolvers": Case(
        (ours(outbound(10001, "back_end"), outbound(10001, "back_end", "127.0.0.2")),),
        DnsListener("127.0.0.1", 15053),
    ),
    "DNS without names": Case((ours(),), DnsListener("127.0.0.1", 15053)),
    "no endpoints": Case((ours(outbound(10001, "backend"), outbound(10002, "db", **{"kuma.io/protocol": "tcp"})),)),
    "not ready": Case(
        (
            ours(
                outbound(10001, "backend"),
                inbounds=[inbound(18080, 8080, health={"ready": False}), inbound(18081, 8081, state="NotReady")],
            ),
            _other("one", 7000, protocol="tcp", health={"ready": False}),
            _other("two", 7000, "10.0.0.3", protocol="tcp", state="NotReady"),
            _other("three", 7000, "10.0.0.4", protocol="tcp", state="Ignored"),
        )
    ),
    "without tags": Case(
        (
            ours(
                reference(10001, "backend", 7000),
                reference(10002, "", 7000, app="shop"),
                reference(10003, "backend", 7001),
                inbounds=[untagged(18080, 8080), untagged(18081, 8081, ""), untagged(18082, 8082, "grpc")],
                address="10.0.0.1",
                labels={"kuma.io/workload": "web"},
            ),
            dataplane(
                "one",
                [untagged(7000, 1, "http2")],
                address="10.0.0.2",
                labels={"kuma.io/workload": "backend", "app": "shop"},
            ),
        ),
        DnsListener("127.0.0.1", 15053),
    ),
    "no inbound": Case((dataplane("web", [], [reference(10001, "backend", 7000)]), _other("one", 7000))),
    "a gateway without tags": Case(
        (dataplane("web", [], [outbound(10001, "backend")], networking={"gateway": {}}), _other("one", 7000))
    ),
    "two names that look alike in statistics": Case(
        (
            ours(outbound(10001, "backend.v1"), outbound(10002, "backend_v1")),
            dataplane("one", [inbound(7000, 1, "backend.v1")], address="10.0.0.2"),
            dataplane("two", [inbound(7000, 1, "backend_v1")], address="10.0.0.3"),
        )
    ),
}
