"""Loading resources: spellings, what is kept, sources, and what cannot be read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from kumadp.errors import ResourceError
from kumadp.resources.load import STANDALONE, load_resource, load_resource_file
from kumadp.resources.schema import json_schema
from kumadp.resources.template import nested
from kumadp.resources.types import Dataplane, ZoneEgress, ZoneIngress, seconds
from kumadp.resources.wire import request_json

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
CAPTURED = {
    path.parent.relative_to(CAPTURES).as_posix(): json.loads(path.read_text())["dataplaneResource"]
    for path in sorted(CAPTURES.glob("*/*/request.json"))
    if "dataplaneResource" in json.loads(path.read_text())
}

FULL = """\
type: Dataplane
mesh: default
name: web-1
labels: {team: a}
networking:
  address: 192.168.0.2
  advertisedAddress: web.example
  inbound:
    - port: 11011
      servicePort: 8080
      serviceAddress: 127.0.0.1
      address: 192.168.0.3
      tags: {kuma.io/service: web, kuma.io/protocol: http, version: "1"}
      health: {ready: true}
      serviceProbe: {interval: 5s, timeout: .3s, unhealthyThreshold: 3, healthyThreshold: 1, tcp: {}}
      state: NotReady
  outbound:
    - port: 33033
      address: 127.0.0.1
      tags: {kuma.io/service: redis, version: v2}
    - port: 33034
      backendRef: {kind: MeshService, name: redis, port: 6379}
  transparentProxying:
    redirectPortInbound: 15006
    redirectPortOutbound: 15001
    directAccessServices: ["*"]
    reachableServices: [redis]
    ipFamilyMode: IPv4
  admin: {port: 9902}
metrics:
  name: prometheus-1
  type: prometheus
  conf: {port: 5670, path: /metrics, deeply: {nested: [1, 2.5, null, true]}}
probes:
  port: 9000
  endpoints:
    - {inboundPort: 11011, inboundPath: /healthz, path: /8080/healthz}
"""


def load(text: str, **variables: str) -> Resource:
    return load_resource(text, "dp.yaml", variables=variables)


def problems(text: str, **variables: str) -> list[str]:
    with pytest.raises(ResourceError) as wrong:
        load(text, **variables)
    return [str(problem) for problem in wrong.value.problems]


def expected(text: str) -> list[str]:
    """The problems of a text; if there are none, check that it can be sent."""
    try:
        json.loads(request_json(load(text)))
    except ResourceError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_the_whole_schema_is_parsed_and_kept_as_written() -> None:
    resource = load(FULL)
    spec = resource.spec
    assert isinstance(spec, Dataplane)
    inbound = spec.networking.inbound[0]
    assert (inbound.port, inbound.service_port, inbound.state, inbound.protocol) == (11011, 8080, "NotReady", "http")
    assert inbound.service_probe is not None
    assert seconds(inbound.service_probe.timeout, 9) == 0.3
    assert spec.networking.outbound[1].backend_ref is not None
    assert spec.networking.transparent_proxying is not None
    assert spec.networking.transparent_proxying.redirect_port_inbound == 15006
    assert spec.probes is not None
    assert spec.probes.endpoints[0].inbound_path == "/healthz"
    assert [note.path for note in resource.notes] == [
        'networking.inbound[0].tags["kuma.io/protocol"]',
        "networking.outbound[0].backendRef",
    ]
    assert resource.tree == yaml.safe_load(FULL)


def spelled(text: str, how: str) -> str:
    def change(value: Any, inside_tags: bool = False) -> Any:
        if isinstance(value, list):
            return [change(item) for item in value]
        if not isinstance(value, dict):
            return value
        free = {"tags", "labels", "conf"}
        return {
            (key if inside_tags else spell(key)): change(item, inside_tags or key in free)
            for key, item in value.items()
        }

    def spell(key: str) -> str:
        if how == "lower":
            return key.lower()
        return "".join("_" + letter.lower() if letter.isupper() else letter for letter in key)

    return yaml.safe_dump(change(yaml.safe_load(text)))


@pytest.mark.parametrize("how", ["lower", "snake"])
def test_other_spellings_mean_the_same(how: str) -> None:
    assert load(spelled(FULL, how)).tree == load(FULL).tree


@pytest.mark.parametrize(
    ("written", "meant"), [("1", "NotReady"), ("0", "Ready"), ("notready", "NotReady"), ("Ignored", "Ignored")]
)
def test_enums_are_names_or_numbers(written: str, meant: str) -> None:
    resource = load(FULL.replace("state: NotReady", f"state: {written}"))
    assert resource.tree["networking"]["inbound"][0]["state"] == meant


def test_unknown_keys_are_kept_everywhere_and_noted() -> None:
    text = (
        FULL.replace("    - port: 11011", "    - future: {a: [1, {b: c}]}\n      port: 11011") + "kri: x\nprobez: 1\n"
    )
    resource = load(text)
    assert resource.tree["networking"]["inbound"][0]["future"] == {"a": [1, {"b": "c"}]}
    assert resource.tree["kri"] == "x"
    message = [str(note) for note in resource.notes]
    assert any("networking.inbound[0].future" in note and "dp.yaml:9" in note for note in message)
    assert any("did you mean probes" in note for note in message)
    assert json.loads(request_json(resource))["networking"]["inbound"][0]["future"] == {"a": [1, {"b": "c"}]}


@pytest.mark.parametrize("name", CAPTURED)
def test_the_request_equals_that_of_kuma_dp(name: str) -> None:
    theirs = json.loads(CAPTURED[name])
    for text in (CAPTURED[name], yaml.safe_dump(theirs)):
        ours = json.loads(request_json(load(text)))
        ours.pop("kri")
        assert ours == {key: value for key, value in theirs.items() if key not in {"kri", "probes"}}


def test_probes_are_sent_if_kumadp_does_not_serve_them() -> None:
    assert "probes" in json.loads(request_json(load(FULL), without=frozenset()))
    assert "probes" not in json.loads(request_json(load(FULL)))


def test_only_durations_are_normalised_for_envoy() -> None:
    text = FULL.replace("interval: 5s", "interval: 1.s").replace('version: "1"', "interval: .3s")
    sent = json.loads(request_json(load(text)))["networking"]["inbound"][0]
    assert (sent["serviceProbe"]["interval"], sent["serviceProbe"]["timeout"]) == ("1s", "0.3s")
    finer = json.loads(request_json(load(FULL.replace("timeout: .3s", "timeout: 1.12345678901s"))))
    assert finer["networking"]["inbound"][0]["serviceProbe"]["timeout"] == "1.123456789s"
    assert sent["tags"]["interval"] == ".3s"


def test_aliases_and_merge_keys_are_written_out() -> None:
    text = FULL.replace("tags: {kuma.io/service: redis, version: v2}", "tags: &t {kuma.io/service: redis}").replace(
        "backendRef: {kind: MeshService, name: redis, port: 6379}", "tags: {<<: *t, version: v3}"
    )
    outbound = load(text).tree["networking"]["outbound"]
    assert outbound[1]["tags"] == {"kuma.io/service": "redis", "version": "v3"}


def test_zone_proxies_are_parsed() -> None:
    ingress = load("type: ZoneIngress\nname: i\nnetworking: {address: 10.0.0.1, port: 10001, admin: {port: 9901}}")
    egress = load("type: ZoneEgress\nname: e\nnetworking: {address: 10.0.0.1, port: 10002}")
    assert isinstance(ingress.spec, ZoneIngress)
    assert isinstance(egress.spec, ZoneEgress)
    assert egress.spec.networking.port == 10002


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{name}}", "web"),
        ("{{ name }}", "web"),
        ("{{a.b}}", "deep"),
        ("{{ missing }}x", "x"),
        ("{{html}}", "a&amp;b"),
        ("{{{html}}}", "a&b"),
    ],
)
def test_mustache_as_kuma_dp_renders_it(template: str, rendered: str) -> None:
    text = FULL.replace("team: a", f"team: '{template}'")
    variables = {"name": "web", "a.b": "deep", "html": "a&b"}
    assert load_resource(text, "dp.yaml", variables=variables).labels == {"team": rendered}


def test_variables_nest_by_dots() -> None:
    assert nested({"a.b.c": "1", "a.d": "2"}) == {"a": {"b": {"c": "1"}, "d": "2"}}


@pytest.mark.parametrize("broken", ["{{#a}}", "{{/a}}", "{{a", "{{= =}}", "{{#a}}" * 2000 + "{{/a}}" * 2000])
def test_an_invalid_template_is_one_line(broken: str) -> None:
    message = problems(FULL + f"# {broken}\n", a="x")
    assert len(message) == 1
    assert "template" in message[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a mapping"),
        ("- a", "is not a mapping"),
        ("just text", "is not a mapping"),
        ("a: [", "is not YAML or JSON"),
        ("\tx: 1", "is not YAML or JSON"),
        ("mesh: default", "one of Dataplane, ZoneIngress, ZoneEgress"),
        ("type: Dataplan\nname: a", "'Dataplan' is not known"),
        ("type: Dataplane\n---\ntype: Dataplane", "more than one document"),
        ("x: " + "[" * 50_000, "nested deeper"),
        ("x" * 2_000_000, "larger than"),
    ],
)
def test_an_invalid_resource_is_one_line(text: str, message: str) -> None:
    results = problems(text)
    assert len(results) == 1
    assert message in results[0]
    assert len(results[0].splitlines()) == 1


def test_control_characters_are_escaped() -> None:
    (message,) = problems('type: "Data\\nplane\\e[31m"\nname: a')
    assert message.isprintable()
    message = "\n".join(problems(FULL.replace("admin: {port: 9902}", 'admin: "a\\nb\\e[2J"')))
    assert r"networking.admin: must be a mapping, not a\nb\x1b[2J" in message


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory"), (binary, "not UTF-8")):
        with pytest.raises(ResourceError, match=message):
            load_resource_file(path)


def test_file_and_bom_and_windows_lines(tmp_path: Path) -> None:
    file = tmp_path / "dp.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert load_resource_file(file).tree == yaml.safe_load(FULL)


def test_the_json_schema_accepts_what_the_parser_accepts() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for text in (FULL, *CAPTURED.values()):
        validator.validate(yaml.safe_load(text))
    for wrong in (
        FULL.replace("port: 11011", "port: 70000"),
        FULL.replace("NotReady", "Sleepy"),
        FULL.replace("interval: 5s", "interval: 5d"),
        FULL.replace("type: Dataplane", "type: Datapane"),
    ):
        assert not validator.is_valid(yaml.safe_load(wrong))


def test_damaged_documents_only_cause_problems() -> None:
    draw = random.Random(20261124)
    pieces = [
        *FULL.splitlines(keepends=True),
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a ",
        "<<: *a\n",
        "!!int ",
        "\x00",
        "? ",
    ]
    for _ in range(600):
        lines = FULL.splitlines(keepends=True)
        for _ in range(draw.randint(1, 4)):
            where = draw.randrange(len(lines))
            how = draw.randrange(3)
            if how == 0:
                del lines[where]
            elif how == 1:
                lines.insert(where, draw.choice(pieces))
            else:
                cut = draw.randrange(len(lines[where]) + 1)
                lines[where] = lines[where][:cut] + draw.choice(pieces) + lines[where][cut:]
        message = expected("".join(lines))
        assert all(len(line.splitlines()) == 1 for line in message)


def test_without_a_control_plane_nothing_is_noted_about_versions_of_it() -> None:
    tags = {"kuma.io/service": "web", "kuma.io/protocol": "http"}
    networking = {"address": "127.0.0.1", "inbound": [{"port": 11011, "tags": tags}]}
    text = yaml.safe_dump({"type": "Dataplane", "mesh": "default", "name": "web", "networking": networking})
    assert load_resource(text, "dp.yaml").notes
    assert load_resource(text, "dp.yaml", version=STANDALONE).notes == ()
