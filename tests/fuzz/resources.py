"""What users write: resources, settings, durations, the transparent proxy's configuration, control commands."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import strategies as st
from yarl import URL

from kumadp.daemon import log_levels
from kumadp.durations import in_seconds, parse_nanoseconds
from kumadp.errors import CommandRefused, Problem, ResourceError, SettingsError
from kumadp.resources.kuma_versions import ALL
from kumadp.resources.load import load_resource
from kumadp.resources.transparent_proxy import read_transparent
from kumadp.resources.wire import digest, request_json
from kumadp.settings.file import read_settings
from kumadp.settings.values import (
    BadValue,
    parse_assignments,
    parse_boolean,
    parse_duration,
    parse_integer,
    write_duration,
)
from tests.fuzz.structure import json_trees
from tests.fuzz.target import ROOT, Target

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource

_WORDS = (
    b"type: Dataplane\n", b"networking:", b"inbound:", b"- port: 80", b"tags:", b"kuma.io/service: a", b"outbound:",
    b"gateway:", b"type: BUILTIN", b"serviceProbe:", b"interval: 1s", b"backendRef:", b"kind: MeshService", b"labels:",
    b"probes:", b"transparentProxying:", b"admin: {port: 9901}", b"listeners:", b"{{ name }}", b"{{#a}}", b"{{/a}}",
    b"- &a ", b"*a", b"<<: *a", b"!!str ", b"  ", b"\n", b"{", b"}", b"[", b"]", b": ", b"'", b'"', b"# x\n", b"~",
    b"metrics:", b"envoy:", b"xdsTransportProtocolVariant: DELTA_GRPC", b"state: NotReady",
)  # fmt: skip
_VARIABLES = {"name": "a", "a.b": "c<", "port": "80"}


def _resource_seeds() -> list[bytes]:
    names = ("dataplane.yaml", "dataplane-kuma3.yaml", "dataplane-template.yaml", "gateway.yaml", "zone-egress.yaml",
             "zone-ingress.yaml", "zone-proxy.yaml")  # fmt: skip
    files = [(ROOT / "configs" / name).read_bytes() for name in names]
    table = yaml.safe_load((ROOT / "tests" / "data" / "dataplanes" / "table.yaml").read_text())
    base: dict[str, Any] = {"type": "Dataplane", "mesh": "default", "name": "a"}
    rows = [{**base, **row} for row in table.values() if isinstance(row, dict)]
    for row in rows:
        if isinstance(row.get("networking"), dict):
            row["networking"] = {"address": "10.0.0.1", **row["networking"]}
    return [
        *files,
        *(json.dumps(row).encode() for row in rows[::4]),
        *(yaml.safe_dump(row).encode() for row in rows[::9]),
    ]


def _load(text: str, version: str) -> Resource | None:
    with contextlib.suppress(ResourceError):
        return load_resource(text, "dp", variables=_VARIABLES, version=version)
    return None


def _resource(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    loaded = _load(text, "")
    judged = {version: _load(text, version) for version in (ALL[0], ALL[-1])}
    if loaded is None:
        # What no version accepts, none accepts.
        load_resource(text, "dp", variables=_VARIABLES)
    assert loaded is not None or not any(judged.values())
    for resource in filter(None, (loaded, *judged.values())):
        digest(resource)
        json.loads(request_json(resource))


def _trees() -> st.SearchStrategy[bytes]:
    key = st.sampled_from(
        ["type", "mesh", "name", "networking", "address", "inbound", "outbound", "port", "tags", "labels", "gateway",
         "servicePort", "protocol", "kuma.io/service", "health", "serviceProbe", "tcp", "backendRef", "probes", "x"]
    )  # fmt: skip
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(-1, 70_000), st.floats(allow_nan=False),
        st.sampled_from(["Dataplane", "ZoneIngress", "10.0.0.1", "80", "1s", "", "a", "::1", "{{ name }}", "\ud800"]),
    )  # fmt: skip
    tree = st.recursive(
        leaf,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(key, inner, max_size=5)),
        max_leaves=25,
    )
    networking = st.dictionaries(key, tree, max_size=5)
    resource = st.tuples(st.sampled_from(["Dataplane", "ZoneEgress"]), networking).map(
        lambda pair: {"type": pair[0], "mesh": "default", "name": "a", "networking": {"address": "10.0.0.1", **pair[1]}}
    )
    return st.one_of(resource, tree).map(lambda value: json.dumps(value).encode())


def _settings(data: bytes) -> None:
    problems: list[Problem] = []
    read_settings(data.decode("utf-8", "replace"), "settings.yaml", problems)
    for problem in problems:
        assert str(problem).isprintable() or "\n" not in str(problem)


def _settings_seeds() -> list[bytes]:
    sample = (ROOT / "configs" / "kumadp.yaml").read_text().splitlines()
    opened = [line.replace("# ", "", 1) if line.lstrip().startswith("# ") and ":" in line else line for line in sample]
    return ["\n".join(sample).encode()[:3500], "\n".join(opened).encode()[:3500], b"dataplane:\n  name: a\n  mesh: b\n"]


def _duration(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (parse_boolean, parse_integer, parse_assignments):
        with contextlib.suppress(BadValue):
            parse(text)
    nanoseconds = parse_nanoseconds(text)
    assert -(2**63) <= nanoseconds < 2**63
    in_seconds(nanoseconds)
    if abs(nanoseconds) < 10**15:
        assert parse_nanoseconds(write_duration(parse_duration(text))) == nanoseconds


def _durations() -> st.SearchStrategy[bytes]:
    part = st.tuples(
        st.sampled_from(["0", "1", "1.5", ".5", "1.", "99999999999", "9" * 40, "-", "٣"]),
        st.sampled_from(["ns", "us", "µs", "ms", "s", "m", "h", "d", ""]),
    ).map("".join)
    return st.tuples(st.sampled_from(["", "+", "-"]), st.lists(part, max_size=5)).map(
        lambda pair: (pair[0] + "".join(pair[1])).encode()
    )


def _transparent(data: bytes) -> None:
    read_transparent([("a.yaml", data.decode("utf-8", "replace"))])


def _log_level(data: bytes) -> None:
    query = URL.build(scheme="http", host="a", path="/log-level", query_string=data.decode("latin-1")).query
    level = query.get("level", "")
    log_levels._check(level, {name: found for name, found in query.items() if name != "level"})


TARGETS = (
    Target(
        "dataplane", _resource, _resource_seeds, (ResourceError,), _WORDS, _trees, lines=1500, lines_base=60_000,
        memory=2500, memory_base=400_000, largest=3000, slow=True, structure=json_trees,
    ),
    Target(
        "settings-file", _settings, _settings_seeds, (), (*_WORDS, b"dataplane:", b"controlPlane:", b"dns:"),
        lines=100, lines_base=150_000, memory=1000, memory_base=200_000,
    ),
    Target(
        "duration", _duration, lambda: [b"1m30s", b"500ms", b"1.5h", b"-2us", b"a=b,c=d", b"true", b"12"],
        (ValueError,),
        ("µs".encode(), b"ns", b"h", b"1.5", b".", b"=", b","), _durations, largest=300,
    ),
    Target(
        "transparent-proxy", _transparent,
        lambda: [
            b"ipFamilyMode: dualstack\nredirect:\n  inbound: {enabled: true, port: 15006}\n  outbound: {port: 15001}\n"
            b"  dns: {enabled: true}\n  vnet: {networks: ['docker0:10.0.0.0/8']}\n"
        ],
        (SettingsError,), (b"redirect:", b"vnet:", b"networks:", b"port: 1", b"enabled: yes", b"- "), lines=150,
        lines_base=10_000, memory=600, memory_base=100_000,
    ),
    Target(
        "control-request", _log_level, lambda: [b"level=debug&relay=info&envoy.upstream=trace", b"reset=1"],
        (CommandRefused,), (b"&", b"=", b"%", b"%ff", b"+", b"level=", b"envoy."), lines=100, lines_base=60_000,
        memory_base=200_000, memory=300, largest=2000,
    ),
)  # fmt: skip
