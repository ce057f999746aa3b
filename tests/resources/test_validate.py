"""The rules of resources: message, path, line and hint of each problem."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kumadp.addresses import overlap
from kumadp.errors import ResourceError
from kumadp.resources.fields import DATAPLANE, Message
from kumadp.resources.load import load_resource
from kumadp.resources.sockets import BoundPort, BoundSocket, bound_sockets
from kumadp.resources.wire import request_json

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD: dict[str, Any] = {
    "type": "Dataplane",
    "mesh": "default",
    "name": "web-1",
    "networking": {
        "address": "192.168.0.2",
        "inbound": [
            {
                "port": 11011,
                "servicePort": 8080,
                "serviceAddress": "127.0.0.1",
                "tags": {"kuma.io/service": "web", "kuma.io/protocol": "http"},
            }
        ],
        "outbound": [{"port": 33033, "tags": {"kuma.io/service": "redis"}}],
        "admin": {"port": 9901},
    },
}
REMOVED = object()


def changed(**changes: Any) -> dict[str, Any]:
    """GOOD with values set at dotted paths; ``__`` stands for a dot, a number for a list's index."""
    tree: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    for path, value in changes.items():
        place: Any = tree
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        for parent in parents:
            place = place[parent] if isinstance(parent, int) else place.setdefault(parent, {})
        if value is REMOVED:
            del place[last]
        elif isinstance(last, int) and last == len(place):
            place.append(value)
        else:
            place[last] = value
    return tree


def reported(tree: dict[str, Any]) -> list[str]:
    try:
        load_resource(yaml.safe_dump(tree, sort_keys=False), "dp.yaml")
    except ResourceError as error:
        return [f"{problem.path}: {problem.message} ({problem.hint})" for problem in error.problems]
    return []


IN = "networking__inbound__0__"
REACHABLE = "networking__transparentProxying__reachableBackends__refs"
REFS = "networking.transparentProxying.reachableBackends.refs"
OUT = "networking__outbound__0__"
GATEWAY = {"tags": {"kuma.io/service": "edge"}}
SECOND = {"port": 11012, "tags": {"kuma.io/service": "two"}}
PROBE = {"interval": "5s", "tcp": {}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no name": (changed(name=REMOVED), "name: is missing"),
    "a bad name": (changed(name="Web 1"), "name: 'Web 1' is not a name"),
    "a name with a line end": (changed(name="web\n"), r"name: 'web\n' is not a name"),
    "a name with a part of nothing": (changed(name="a..b"), "name: 'a..b' is not a name"),
    "a name without end": (changed(name="a" * 254), "is not a name"),
    "no mesh": (changed(mesh=REMOVED), "mesh: is missing"),
    "no address": (changed(networking__address=REMOVED), "networking.address: is missing"),
    "an address that is none": (changed(networking__address="1.2.3"), "networking.address: '1.2.3' is not an IP"),
    "an address that is everywhere": (
        changed(networking__address="0.0.0.0"),
        "networking.address: 0.0.0.0 is not an address that others can reach",
    ),
    "an advertised address that is everywhere": (
        changed(networking__advertisedAddress="::"),
        "networking.advertisedAddress: :: is not an address that others can reach",
    ),
    "a host name that is none": (changed(networking__address="a b"), "networking.address: 'a b' is not"),
    "an address with a zone": (
        changed(networking__address="fe80::1%eth0"),
        "networking.address: 'fe80::1%eth0' has an IPv6 zone, which neither Kuma nor Envoy accepts",
    ),
    "an advertised address with a zone": (
        changed(networking__advertisedAddress="fe80::1%1"),
        "networking.advertisedAddress: 'fe80::1%1' has an IPv6 zone",
    ),
    "an inbound with a zone": (
        changed(**{IN + "address": "fe80::1%eth0"}),
        "networking.inbound[0].address: 'fe80::1%eth0' has an IPv6 zone",
    ),
    "an application with a zone": (
        changed(**{IN + "serviceAddress": "::1%lo"}),
        "networking.inbound[0].serviceAddress: '::1%lo' has an IPv6 zone",
    ),
    "an outbound with a zone": (
        changed(**{OUT + "address": "fe80::1%eth0"}),
        "networking.outbound[0].address: 'fe80::1%eth0' has an IPv6 zone",
    ),
    "a zone of nothing": (changed(networking__address="fe80::1%"), "networking.address: 'fe80::1%' is not an IP"),
    "everywhere, in another spelling": (
        changed(networking__address="0:0::0"),
        "networking.address: 0:0::0 is not an address that others can reach",
    ),
    "a label that is too long": (changed(networking__address="a" * 64), "is not an IP address or host name"),
    "a label of nothing": (changed(networking__address="a..b"), "networking.address: 'a..b' is not an IP"),
    "a bad advertised address": (changed(networking__advertisedAddress="x_y!"), "networking.advertisedAddress: "),
    "gateway and inbounds": (changed(networking__gateway=GATEWAY), "networking: has a gateway and inbounds"),
    "a gateway without a service": (
        changed(networking__inbound=REMOVED, networking__gateway={"tags": {"a": "b"}}),
        'networking.gateway.tags["kuma.io/service"]: is missing',
    ),
    "an unknown gateway": (
        changed(networking__inbound=REMOVED, networking__gateway={**GATEWAY, "type": "OPEN"}),
        "networking.gateway.type: 'OPEN' is not known (one of DELEGATED, BUILTIN)",
    ),
    "a gateway that speaks http": (
        changed(
            networking__inbound=REMOVED,
            networking__gateway={"tags": {"kuma.io/service": "edge", "kuma.io/protocol": "http"}},
        ),
        "networking.gateway.tags[\"kuma.io/protocol\"]: 'http' is not known (tcp)",
    ),
    "a builtin gateway with outbounds": (
        changed(networking__inbound=REMOVED, networking__gateway={**GATEWAY, "type": "BUILTIN"}),
        "networking.outbound: is not allowed for a builtin gateway",
    ),
    "no service": (changed(**{IN + "tags": {"a": "b"}}), 'networking.inbound[0].tags["kuma.io/service"]: is missing'),
    "an empty zone": (changed(**{IN + "tags__kuma.io/zone": ""}), 'tags["kuma.io/zone"]: is empty'),
    "a zone that is no tag's value": (changed(**{IN + "tags__kuma.io/zone": "a b"}), "'a b' is not a valid tag value"),
    "an unknown protocol": (
        changed(**{IN + "tags__kuma.io/protocol": "htp"}),
        "networking.inbound[0].tags[\"kuma.io/protocol\"]: 'htp' is not known; Kuma 2.8, 2.13 and 2.14 refuse that "
        "(one of tcp, http, http2, grpc, kafka)",
    ),
    "an empty tag": (changed(**{IN + "tags__version": ""}), "networking.inbound[0].tags.version: is empty"),
    "a tag that holds a space": (
        changed(**{IN + "tags__version": "v 1"}),
        "networking.inbound[0].tags.version: 'v 1' is not a valid tag value",
    ),
    "a tag that nobody can name": (
        changed(**{OUT + "tags__a b": "c"}),
        'networking.outbound[0].tags["a b"]: is not a valid tag name',
    ),
    "a tag that is a number": (
        changed(**{IN + "tags__version": 1}),
        'tags.version: must be a string, not 1 (write "1")',
    ),
    "no port": (changed(**{IN + "port": REMOVED}), "networking.inbound[0].port: is missing (1 to 65535)"),
    "port 0": (changed(**{IN + "port": 0}), "networking.inbound[0].port: 0 is out of range (1 to 65535)"),
    "a port too large": (changed(**{IN + "port": 65536}), "networking.inbound[0].port: 65536 is out of range"),
    "a port that is text": (changed(**{IN + "port": "http"}), "inbound[0].port: must be a whole number, not 'http'"),
    "a bad service port": (changed(**{IN + "servicePort": 99999}), "networking.inbound[0].servicePort: 99999 is out"),
    "a bad service address": (
        changed(**{IN + "serviceAddress": "app"}),
        "inbound[0].serviceAddress: 'app' is not an IP",
    ),
    "a bad inbound address": (changed(**{IN + "address": "app"}), "networking.inbound[0].address: 'app' is not an IP"),
    "an inbound to itself": (
        changed(**{IN + "serviceAddress": "192.168.0.2", IN + "servicePort": 11011}),
        "networking.inbound[0].servicePort: the inbound would forward to itself",
    ),
    "a state that is a digit to Unicode alone": (changed(**{IN + "state": "²"}), "inbound[0].state: '²' is not known"),
    "a port in another script": (changed(**{IN + "port": "٣"}), "inbound[0].port: must be a whole number"),
    "a configuration of metrics that is text": (
        changed(metrics={"type": "prometheus", "conf": "x"}),
        "metrics.conf: must be a mapping, not x",
    ),
    "an unknown state": (changed(**{IN + "state": "Up"}), "networking.inbound[0].state: 'Up' is not known"),
    "an interval in days": (
        changed(**{IN + "serviceProbe": {**PROBE, "interval": "1d"}}),
        "networking.inbound[0].serviceProbe.interval: '1d' is not a duration, write one like 1m30s or 500ms",
    ),
    "an interval below 0": (
        changed(**{IN + "serviceProbe": {**PROBE, "interval": "-1m"}}),
        "serviceProbe.interval: -1m is not greater than 0",
    ),
    "an inbound whose application is at the data plane's address and the inbound's port": (
        changed(**{IN + "address": "10.0.0.9", IN + "serviceAddress": "192.168.0.2", IN + "servicePort": 11011}),
        "networking.inbound[0].servicePort: the inbound would forward to itself",
    ),
    "an interval without a unit": (
        changed(**{IN + "serviceProbe": {**PROBE, "interval": 10}}),
        "serviceProbe.interval: '10' is not a duration, write one like 1m30s or 500ms; did you mean 10s?",
    ),
    "an interval of 0": (
        changed(**{IN + "serviceProbe": {**PROBE, "interval": "0s"}}),
        "serviceProbe.interval: 0s is not greater than 0",
    ),
    "a threshold of 0": (
        changed(**{IN + "serviceProbe": {**PROBE, "unhealthyThreshold": 0}}),
        "serviceProbe.unhealthyThreshold: 0 is out of range (1 or more)",
    ),
    "an interval of almost 0": (
        changed(**{IN + "serviceProbe": {**PROBE, "interval": "0.0000000001s"}}),
        "serviceProbe.interval: 0.0000000001s is not greater than 0",
    ),
    "an interval of ages": (
        changed(**{IN + "serviceProbe": {**PROBE, "interval": "9" * 40 + "s"}}),
        "is longer than 292 years",
    ),
    "a duration with a line end": (
        changed(**{IN + "serviceProbe": {**PROBE, "timeout": "1s\n"}}),
        "serviceProbe.timeout: '1s\\n' is not a duration",
    ),
    "health that is text": (
        changed(**{IN + "health": {"ready": "maybe"}}),
        "networking.inbound[0].health.ready: must be true or false, not 'maybe'",
    ),
    "an outbound without a service": (
        changed(**{OUT + "tags": {}}),
        'networking.outbound[0].tags["kuma.io/service"]: is missing',
    ),
    "an outbound without a port": (changed(**{OUT + "port": REMOVED}), "networking.outbound[0].port: is missing"),
    "an outbound at a name": (changed(**{OUT + "address": "redis"}), "networking.outbound[0].address: 'redis' is not"),
    "a reference of an unknown kind": (
        changed(**{OUT + "tags": REMOVED, OUT + "backendRef": {"kind": "Service", "name": "r", "port": 1}}),
        "networking.outbound[0].backendRef.kind: 'Service' is not known (one of MeshService, ",
    ),
    "a reference without a name": (
        changed(**{OUT + "tags": REMOVED, OUT + "backendRef": {"kind": "MeshService", "port": 1}}),
        "networking.outbound[0].backendRef.name: is missing",
    ),
    "a reference without a port": (
        changed(**{OUT + "tags": REMOVED, OUT + "backendRef": {"kind": "MeshService", "name": "r"}}),
        "networking.outbound[0].backendRef.port: is missing",
    ),
    "a reference to services of several zones without a port": (
        changed(**{OUT + "tags": REMOVED, OUT + "backendRef": {"kind": "MeshMultiZoneService", "name": "r"}}),
        "networking.outbound[0].backendRef.port: is missing",
    ),
    "a probe of no inbound": (
        changed(probes={"endpoints": [{"inboundPort": 8081, "inboundPath": "/a", "path": "/b"}]}),
        "probes.endpoints[0].inboundPort: no application and no inbound has port 8081 (ports of applications: 8080)",
    ),
    "a probe of nothing": (
        changed(probes={"endpoints": [{"inboundPath": "/a", "path": "/b"}]}),
        "probes.endpoints[0].inboundPort: is missing (ports of applications: 8080)",
    ),
    "a probe's path that is no URL path": (
        changed(probes={"endpoints": [{"inboundPort": 8080, "inboundPath": "/a%zz", "path": "/b"}]}),
        "probes.endpoints[0].inboundPath: '/a%zz' is not a URL path",
    ),
    "metrics of an unknown type": (
        changed(metrics={"type": "graphite"}),
        "metrics.type: 'graphite' is not known; Kuma 2.8, 2.13 and 2.14 refuse that (write prometheus)",
    ),
    "metrics without a type": (
        changed(metrics={"name": "a"}),
        "metrics.type: is missing; Kuma 2.8, 2.13 and 2.14 refuse that (write prometheus)",
    ),
    "an aggregate twice": (
        changed(metrics={"type": "prometheus", "conf": {"aggregate": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}}),
        "metrics.conf.aggregate[2].name: 'a' is given twice",
    ),
    "two aggregates without a name": (
        changed(metrics={"type": "prometheus", "conf": {"aggregate": [{"port": 1}, {"port": 2}]}}),
        "metrics.conf.aggregate[1].name: is missing twice",
    ),
    "mTLS skipped and wanted": (
        changed(metrics={"type": "prometheus", "conf": {"skipMTLS": True, "tls": {"mode": "activeMTLSBackend"}}}),
        "metrics.conf: skipMTLS and tls contradict each other",
    ),
    "an expression of Python's": (
        changed(metrics={"type": "prometheus", "conf": {"envoy": {"filterRegex": "(?<=a)b"}}}),
        "metrics.conf.envoy.filterRegex: is not a regular expression: invalid perl operator: (?<=",
    ),
    "a metrics port that is none": (
        changed(metrics={"type": "prometheus", "conf": {"port": 99999}}),
        "metrics.conf.port: 99999 is not a port",
    ),
    "a metrics port in another script": (
        changed(metrics={"type": "prometheus", "conf": {"port": "٣"}}),
        "metrics.conf.port: '٣' is not a port",
    ),
    "an aggregate's port as words": (
        changed(metrics={"type": "prometheus", "conf": {"aggregate": [{"name": "a", "port": "many"}]}}),
        "metrics.conf.aggregate[0].port: must be a whole number, not 'many'",
    ),
    "a mesh whose name is none": (changed(mesh="A mesh"), "mesh: 'A mesh' is not a name"),
    "a listener on an inbound's port": (
        changed(networking__listeners=[{"type": "ZoneIngress", "address": "192.168.0.2", "port": 11011}]),
        "networking.listeners[0].port: 192.168.0.2:11011 is bound twice, first for inbound web",
    ),
    "a probe without a slash": (
        changed(probes={"endpoints": [{"inboundPort": 11011, "inboundPath": "a", "path": "/b"}]}),
        "probes.endpoints[0].inboundPath: 'a' does not begin with /",
    ),
    "a probe path twice": (
        changed(probes={"endpoints": [{"inboundPort": 11011, "inboundPath": "/a", "path": "/b"}] * 2}),
        "probes.endpoints[1].path: /b is used twice",
    ),
    "two inbounds on one port": (
        changed(networking__inbound__1={**SECOND, "port": 11011}),
        "networking.inbound[1].port: 192.168.0.2:11011 is bound twice, first for inbound web",
    ),
    "an outbound on an inbound's port": (
        changed(**{OUT + "port": 11011, OUT + "address": "192.168.0.2"}),
        "networking.outbound[0].port: 192.168.0.2:11011 is bound twice",
    ),
    "two outbounds on one port": (
        changed(networking__outbound__1={"port": 33033, "tags": {"kuma.io/service": "b"}}),
        "networking.outbound[1].port: 127.0.0.1:33033 is bound twice, first for outbound redis",
    ),
    "the admin on an outbound's port": (
        changed(networking__admin__port=33033),
        "networking.admin.port: 127.0.0.1:33033 is bound twice",
    ),
    "an inbound on the admin's port": (
        changed(**{IN + "port": 9901}),
        "networking.admin.port: 192.168.0.2:9901 is bound twice, first for inbound web (networking.inbound[0].port)",
    ),
    "the probes on an inbound's port": (
        changed(probes={"port": 11011, "endpoints": [{"inboundPort": 11011, "inboundPath": "/a", "path": "/b"}]}),
        "probes.port: 192.168.0.2:11011 is bound twice",
    ),
    "the wildcard takes every address": (
        changed(**{IN + "address": "0.0.0.0", OUT + "port": 11011}),
        "networking.outbound[0].port: 127.0.0.1:11011 is bound twice",
    ),
    "a list that is none": (
        changed(networking__inbound={"port": 1}),
        "networking.inbound: must be a list, not a mapping",
    ),
    "a mapping that is none": (changed(networking=[]), "networking: must be a mapping, not a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_problem_has_its_path_and_a_hint(name: str) -> None:
    tree, expected = WRONG[name]
    lines = reported(tree)
    assert len([line for line in lines if expected in line]) == 1, lines


FINE: dict[str, dict[str, Any]] = {
    "as it is": GOOD,
    "an inbound on the admin's port, the admin being alone on loopback": changed(
        networking__address="127.0.0.1",
        **{IN + "address": "127.0.0.2", IN + "port": 9901, IN + "servicePort": 8080},
    ),
    "a host name": changed(networking__address="web.example.com"),
    "a host name with an underscore": changed(networking__address="kasse_1"),
    "host names as Kuma takes them": changed(networking__address="_a-._b_", networking__advertisedAddress="Kasse_1.x."),
    "IPv6": changed(networking__address="2001:db8::2"),
    "a delegated gateway": changed(networking__inbound=REMOVED, networking__gateway=GATEWAY),
    "redirected inbounds are not bound": changed(
        networking__transparentProxying={"redirectPortInbound": 15006, "redirectPortOutbound": 15001},
        networking__inbound__1={**SECOND, "port": 33033},
    ),
    "outbounds on different addresses share a port": changed(
        networking__outbound__1={"port": 33033, "address": "127.0.0.2", "tags": {"kuma.io/service": "b"}}
    ),
    "an ignored inbound is not bound": changed(networking__inbound__1={**SECOND, "port": 11011, "state": "Ignored"}),
    "the application on the inbound's port elsewhere": changed(**{IN + "servicePort": 11011}),
    "no protocol": changed(**{IN + "tags": {"kuma.io/service": "web"}}),
    "a probe": changed(probes={"endpoints": [{"inboundPort": 11011, "inboundPath": "/a", "path": "/b"}]}),
    "a probe by the application's port": changed(
        probes={"endpoints": [{"inboundPort": 8080, "inboundPath": "/a", "path": "/b"}]}
    ),
    "a probe of a gateway": changed(
        networking__inbound=REMOVED,
        networking__gateway=GATEWAY,
        probes={"port": 9000, "endpoints": [{"inboundPort": 8100, "inboundPath": "/status", "path": "/s"}]},
    ),
    "a service port of 0 is the inbound's": changed(**{IN + "servicePort": 0}),
    "protocols as Kuma takes them": changed(
        **{IN + "tags": {"kuma.io/service": "web", "kuma.io/protocol": "HTTP"}},
        networking__inbound__1={"port": 1, "tags": {"kuma.io/service": "b", "kuma.io/protocol": "tls"}},
    ),
    "every field of metrics": changed(
        metrics={
            "name": "backend",
            "type": "prometheus",
            "conf": {
                "port": 5670,
                "path": "/metrics",
                "tags": {"kuma.io/service": "metrics"},
                "skipMTLS": False,
                "tls": {"mode": "activeMTLSBackend"},
                "aggregate": [{"name": "a", "port": 80, "path": "/m", "enabled": True, "address": "127.0.0.1"}],
                "envoy": {"filterRegex": "[[:alpha:]]+\\z", "usedOnly": True},
            },
        }
    ),
    "metrics of a gateway are not looked at": changed(
        networking__inbound=REMOVED, networking__gateway=GATEWAY, metrics={"type": "graphite"}
    ),
    "reachable backends": changed(
        **{
            REACHABLE: [
                {"kind": "MeshService", "name": "a", "namespace": "n", "port": 80},
                {"kind": "MeshExternalService", "labels": {"a": "b"}},
                {"kind": "MeshMultiZoneService", "name": "a.b"},
            ]
        }
    ),
    "a zone proxy of 2.14": changed(
        networking__inbound=REMOVED,
        networking__listeners=[{"type": "ZoneIngress", "address": "10.0.0.1", "port": 10001, "name": "in"}],
    ),
    "a probe is one of TCP, named or not": changed(**{IN + "serviceProbe": {"interval": "5s"}}),
    "what is null is not there": changed(
        networking__gateway=None, networking__transparentProxying=None, probes=None, metrics=None
    ),
    "a reference by labels": changed(
        **{OUT + "tags": REMOVED, OUT + "backendRef": {"kind": "MeshService", "labels": {"a": "b"}, "port": 1}}
    ),
    "a reference to what is outside needs no port": changed(
        **{OUT + "tags": REMOVED, OUT + "backendRef": {"kind": "MeshExternalService", "name": "r"}}
    ),
    "a builtin gateway": changed(
        networking__inbound=REMOVED, networking__outbound=REMOVED, networking__gateway={**GATEWAY, "type": "BUILTIN"}
    ),
    "a duration as Go writes it": changed(
        **{IN + "serviceProbe": {"interval": "1m", "timeout": "+1s500ms", "tcp": {}}}
    ),
    "port 0 of a reference to what is outside": changed(
        **{OUT + "tags": REMOVED, OUT + "backendRef": {"kind": "MeshExternalService", "name": "r", "port": 0}}
    ),
    "a port as text": changed(**{IN + "port": "11011"}),
}


@pytest.mark.parametrize("name", FINE)
def test_valid_resources_pass(name: str) -> None:
    assert reported(FINE[name]) == []


def test_a_probe_port_with_two_meanings_is_noted() -> None:
    tree = portable(
        networking__inbound__1={"port": 8080, "servicePort": 9090, "tags": {"kuma.io/service": "b"}},
        probes={"endpoints": [{"inboundPort": 8080, "inboundPath": "/a", "path": "/b"}]},
    )
    notes = load_resource(yaml.safe_dump(tree), "dp.yaml").notes
    assert [note.message for note in notes] == [
        "8080 is the application's port of networking.inbound[0], which is probed, and the inbound port of "
        "networking.inbound[1]"
    ]


# What some versions accept: the base of these has nothing to remark, for any version.
PORTABLE = {
    "networking__inbound__0__protocol": "http",
    "networking__outbound": [{"port": 33033, "backendRef": {"kind": "MeshService", "name": "redis", "port": 6379}}],
}


def portable(**changes: Any) -> dict[str, Any]:
    """As `changed`, without anything that only some versions accept."""
    return changed(**(copy.deepcopy(PORTABLE) | changes))


NOTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a zone": (
        portable(**{IN + "tags__kuma.io/zone": "east"}),
        'networking.inbound[0].tags["kuma.io/zone"]',
        "is replaced by the control plane's own zone",
    ),
    "a gateway's zone": (
        portable(
            networking__inbound=REMOVED,
            networking__gateway={"tags": {"kuma.io/service": "edge", "kuma.io/zone": "east"}},
        ),
        'networking.gateway.tags["kuma.io/zone"]',
        "is replaced by the control plane's own zone",
    ),
    "no inbound": (
        portable(networking__inbound=[]),
        "networking.inbound",
        "there is no inbound and no gateway; Kuma 2.8 and 2.13 refuse that",
    ),
    "an inbound without tags": (
        portable(**{IN + "tags": REMOVED}),
        "networking.inbound[0].tags",
        "are missing; Kuma 2.8 and 2.13 refuse that",
    ),
    "a gateway without tags": (
        portable(networking__inbound=REMOVED, networking__gateway={}),
        "networking.gateway.tags",
        "are missing; Kuma 2.8 and 2.13 refuse that",
    ),
    "a zone egress": (
        {"type": "ZoneEgress", "name": "e", "networking": {"address": "10.0.0.1", "port": 10002}},
        "type",
        "ZoneEgress is not supported; Kuma 3.0 refuses that",
    ),
    "a name with an underscore": (
        portable(name="kasse_1"),
        "name",
        "'kasse_1' has an underscore; the API of Kuma 2.8, 2.13, 2.14 and 3.0 refuses that",
    ),
    "a label of two words": (
        portable(labels={"app": "a b"}),
        "labels.app",
        "'a b' is not a valid label value; the API of Kuma 2.8, 2.13, 2.14 and 3.0 refuses that",
    ),
    "a tag of two words": (
        portable(**{IN + "tags__version": "v 1"}),
        "networking.inbound[0].tags.version",
        "'v 1' is not a valid tag value; Kuma 2.8, 2.13 and 2.14 refuse that",
    ),
    "a reachable backend of an unknown kind": (
        portable(**{REACHABLE: [{"kind": "MeshService", "name": "a"}, {"kind": "Service", "name": "a"}]}),
        "networking.transparentProxying.reachableBackends.refs[1].kind",
        "'Service' is not known; Kuma 2.13, 2.14 and 3.0 refuse that",
    ),
    "a reachable backend without a name": (
        portable(**{REACHABLE: [{"kind": "MeshService"}]}),
        f"{REFS}[0].name",
        "is missing; Kuma 2.13, 2.14 and 3.0 refuse that",
    ),
    "a reachable backend with a namespace alone": (
        portable(**{REACHABLE: [{"kind": "MeshService", "namespace": "n"}]}),
        f"{REFS}[0].name",
        "is missing; Kuma 2.13, 2.14 and 3.0 refuse that",
    ),
    "a reachable backend by name and labels": (
        portable(**{REACHABLE: [{"kind": "MeshService", "name": "a", "labels": {"a": "b"}}]}),
        f"{REFS}[0].labels",
        "cannot be given with a name; Kuma 2.13, 2.14 and 3.0 refuse that",
    ),
    "a reachable backend whose name is none": (
        portable(**{REACHABLE: [{"kind": "MeshService", "name": "A_b"}]}),
        f"{REFS}[0].name",
        "'A_b' is not a name; Kuma 2.13, 2.14 and 3.0 refuse that",
    ),
    "a protocol that is none": (
        portable(**{IN + "protocol": "smtp"}),
        "networking.inbound[0].protocol",
        "'smtp' is not known; Kuma 2.14 and 3.0 refuse that",
    ),
    "a listener of no kind": (
        portable(networking__listeners=[{"address": "10.0.0.1", "port": 10001}]),
        "networking.listeners[0].type",
        "is missing; Kuma 2.14 and 3.0 refuse that",
    ),
    "tags and a reference": (
        portable(**{OUT + "tags": {"kuma.io/service": "redis"}}),
        "networking.outbound[0]",
        "has tags and a backendRef; Kuma 2.8, 2.13 and 2.14 refuse that",
    ),
    "a reference by labels": (
        portable(
            networking__outbound=[{"port": 1, "backendRef": {"kind": "MeshService", "labels": {"a": "b"}, "port": 1}}]
        ),
        "networking.outbound[0].backendRef.name",
        "is missing; Kuma 2.8 refuses that",
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_some_kuma_accepts_is_noted(name: str) -> None:
    tree, path, message = NOTED[name]
    notes = load_resource(yaml.safe_dump(tree, sort_keys=False), "dp.yaml").notes
    assert [(note.path, note.message) for note in notes] == [(path, message)]


@pytest.mark.parametrize("kind", ["ZoneIngress", "ZoneEgress"])
def test_a_zone_proxy_without_an_address_is_noted(kind: str) -> None:
    tree = {"type": kind, "name": "z", "networking": {"port": 10001}}
    notes = load_resource(yaml.safe_dump(tree), "dp.yaml").notes
    assert [(note.path, note.message) for note in notes] == [
        ("type", f"{kind} is not supported; Kuma 3.0 refuses that"),
        ("networking.address", "is missing: control planes accept that, but then send no configuration"),
    ]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("1m", "60s"),
        ("500ms", "0.5s"),
        ("1h0.5s", "3600.5s"),
        ("+1s1s", "2s"),
        ("100ns", "0.0000001s"),
        ("2µs", "0.000002s"),
    ],
)
def test_a_duration_is_sent_in_seconds(written: str, sent: str) -> None:
    resource = load_resource(yaml.safe_dump(changed(**{IN + "serviceProbe": {"interval": written}})), "dp.yaml")
    assert json.loads(request_json(resource))["networking"]["inbound"][0]["serviceProbe"] == {"interval": sent}


def _json_names(message: Message, path: str) -> Iterator[tuple[str, str]]:
    for item in message.fields:
        yield path, item.name
        if isinstance(item.of, Message):
            yield from _json_names(item.of, f"{path}.{item.name}")


# Every field of Dataplane in api/mesh/v1alpha1 of 2.8.8, v2.13.5 and v2.14.3 that a user may write.
KUMA_FIELDS = {
    "": "type mesh name labels creationTime modificationTime kri networking metrics probes",
    ".networking": "address advertisedAddress inbound outbound gateway transparentProxying admin listeners",
    ".networking.inbound": "port servicePort serviceAddress address tags health serviceProbe state name protocol",
    ".networking.inbound.health": "ready",
    ".networking.inbound.serviceProbe": "interval timeout unhealthyThreshold healthyThreshold tcp",
    ".networking.outbound": "address port tags backendRef",
    ".networking.outbound.backendRef": "kind name port labels",
    ".networking.gateway": "tags type",
    ".networking.transparentProxying": "redirectPortInbound redirectPortOutbound directAccessServices "
    "redirectPortInboundV6 reachableServices ipFamilyMode reachableBackends",
    ".networking.transparentProxying.reachableBackends": "refs",
    ".networking.transparentProxying.reachableBackends.refs": "kind name namespace port labels",
    ".networking.admin": "port",
    ".networking.listeners": "type address port name state",
    ".metrics": "name type conf",
    ".metrics.conf": "port path tags skipMTLS aggregate envoy tls",
    ".metrics.conf.aggregate": "name port path enabled address",
    ".metrics.conf.envoy": "filterRegex usedOnly",
    ".metrics.conf.tls": "mode",
    ".probes": "port endpoints",
    ".probes.endpoints": "inboundPort inboundPath path",
}


def test_every_field_of_a_supported_kuma_is_known() -> None:
    known_names: dict[str, set[str]] = {}
    for path, name in _json_names(DATAPLANE, ""):
        known_names.setdefault(path, set()).add(name)
    assert known_names == {path: set(names.split()) for path, names in KUMA_FIELDS.items()}


def test_all_problems_at_once_with_their_lines() -> None:
    text = """\
type: Dataplane
mesh: default
name: UPPER
networking:
  address: 300.0.0.1
  inbound:
    - port: 0
      tags:
        kuma.io/zone: "e s"
        kuma.io/protocol: smtp
  outbound:
    - port: 1
      tags: {}
  admin:
    port: 99999
probes:
  endpoints:
    - inboundPort: 7
      inboundPath: x
      path: /y
"""
    with pytest.raises(ResourceError) as wrong:
        load_resource(text, "dp.yaml")
    results = {(problem.line, problem.path) for problem in wrong.value.problems}
    assert results >= {
        (3, "name"),
        (5, "networking.address"),
        (7, "networking.inbound[0].port"),
        (9, 'networking.inbound[0].tags["kuma.io/zone"]'),
        (8, 'networking.inbound[0].tags["kuma.io/service"]'),
        (10, 'networking.inbound[0].tags["kuma.io/protocol"]'),
        (13, 'networking.outbound[0].tags["kuma.io/service"]'),
        (15, "networking.admin.port"),
        (18, "probes.endpoints[0].inboundPort"),
        (19, "probes.endpoints[0].inboundPath"),
    }
    assert len(results) == 10


def test_transparent_proxying_binds_two_ports() -> None:
    ports = {"redirectPortInbound": 15006, "redirectPortOutbound": 15001}
    tree = changed(networking__transparentProxying=ports, networking__admin=REMOVED)
    bound = bound_sockets(load_resource(yaml.safe_dump(tree), "dp.yaml"))
    assert {(socket.address, socket.port) for socket in bound} == {("0.0.0.0", 15006), ("0.0.0.0", 15001)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type: ZoneIngress\nname: i\nnetworking: {address: 10.0.0.1}", "networking.port: is missing"),
        (
            "type: ZoneIngress\nname: i\nnetworking: {address: 10.0.0.1, port: 1, advertisedPort: 2}",
            "advertisedAddress requires advertisedPort, and vice versa",
        ),
        ("type: ZoneEgress\nname: e\nnetworking: {address: 10.0.0.1}", "networking.port: is missing"),
    ],
)
def test_rules_of_zone_proxies(text: str, expected: str) -> None:
    assert any(expected in line for line in reported(yaml.safe_load(text)))


ADDRESSES = st.sampled_from(["0.0.0.0", "::", "127.0.0.1", "10.0.0.1", "::1", "2001:db8::1", "::ffff:10.0.0.1"])


@given(st.lists(st.tuples(ADDRESSES, st.integers(0, 1)), min_size=1, max_size=8))
def test_sockets_clash_if_their_addresses_overlap(bound: list[tuple[str, int]]) -> None:
    sockets = [BoundSocket(address, 80 + port, "tcp", str(index), "") for index, (address, port) in enumerate(bound)]
    by_port = {80: BoundPort(), 81: BoundPort()}
    for index, later in enumerate(sockets):
        earlier = (item for item in sockets[:index] if item.port == later.port and overlap(item.address, later.address))
        assert by_port[later.port].add(later) == next(earlier, None)
