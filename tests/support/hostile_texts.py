"""Texts that cost a careless parser exponential or quadratic time, for each parser of text from outside."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from kumadp import yamltext
from kumadp.accesslog import records
from kumadp.bootstrap.admin_guard import guard
from kumadp.bootstrap.comparison import differences
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.secrets import secret_in, without_token
from kumadp.controlplane.response_rules import _retry_after
from kumadp.controlplane.token import check_token, expires_at
from kumadp.decoding import decode_json, repair
from kumadp.dns import message, resolvconf
from kumadp.dns.coredns import corefile_check
from kumadp.dns.coredns import template as corefile
from kumadp.envoy.server_state import configuration_error
from kumadp.envoy.version import is_supported
from kumadp.errors import KumadpError
from kumadp.exposition.names import escaped_samples
from kumadp.exposition.reader import (
    MAX_PIECES,
    MAX_SAMPLES,
    ExpositionReader,
    ExpositionTooLarge,
    Family,
    LineTooLong,
    Piece,
)
from kumadp.host.net.tls import read_anchors
from kumadp.metrics.bounds import with_go_bounds
from kumadp.metrics.clusters import ClusterMerger
from kumadp.metrics.formats import Format, FormatConverter, accept_for_sources, choose
from kumadp.metrics.labels import Labels
from kumadp.metrics.profiles import Selection, SelectionSpec
from kumadp.otel import environment
from kumadp.probes.probe_request import clean_path, parse_request
from kumadp.relay.messages import Request, Response
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.secret_scan import why_secret
from kumadp.resources.dynconf_bodies import DNS, MESH_METRIC, InvalidBody, MetricSelector, decode
from kumadp.resources.load import load_resource
from kumadp.settings.values import parse_assignments, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REFUSALS = (KumadpError, ValueError, LineTooLong, ExpositionTooLarge, InvalidBody, yaml.YAMLError)


@dataclass(frozen=True)
class Hostile:
    """``make`` gives a text of about so many bytes, ``parse`` reads it; ``size`` is the largest that is let in."""

    name: str
    make: Callable[[int], Any]
    parse: Callable[[Any], object]
    size: int = 1 << 20

    def run(self, size: int) -> None:
        """Parse one; a refusal is as good as a result."""
        text = self.make(size)
        with contextlib.suppress(*REFUSALS):
            self.parse(text)


@contextlib.contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Raise TimeoutError once this process has used so much; other processes of a busy host do not count."""

    def over(_number: int, _frame: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s of processor time")

    previous = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _repeated(text: str, end: str = "", start: str = "") -> Callable[[int], str]:
    return lambda size: start + text * (size // len(text)) + end


def _numbered(text: str) -> Callable[[int], str]:
    return lambda size: "".join(text.replace("%", str(number)) for number in range(size // (len(text) + 6)))


def _bytes(make: Callable[[int], str]) -> Callable[[int], bytes]:
    return lambda size: make(size).encode()


def _expose(data: bytes) -> None:
    reader = ExpositionReader(checks=True)
    converter = FormatConverter(Format.OPENMETRICS_1, Format.TEXT, "underscores")
    labels = Labels({"mesh": "default"})
    pieces = samples = 0
    for at in range(0, len(data), 1 << 14):
        for piece in reader.feed(data[at : at + (1 << 14)]):
            labels.add(with_go_bounds(converter.convert(piece)))
            pieces += 1
            samples += piece.samples.count(b"\n")
            if pieces > MAX_PIECES or samples > MAX_SAMPLES:
                raise ExpositionTooLarge("as `Other` does")
    for piece in reader.end():
        converter.convert(piece)


def _line_by_line(data: bytes) -> None:
    """An exposition that comes in the smallest of parts."""
    reader = ExpositionReader(checks=True)
    for at in range(0, len(data), 2):
        list(reader.feed(data[at : at + 2]))


def _envoys(data: bytes) -> None:
    reader, clusters = ExpositionReader(checks=False), ClusterMerger()
    for piece in reader.feed(data):
        for cluster in clusters.take(piece):
            with_go_bounds(cluster)
    list(clusters.end())


def _dataplane(text: str) -> object:
    return load_resource(f"type: Dataplane\nmesh: default\nname: a\nnetworking: {{address: 10.0.0.1, {text}}}", "dp")


def _probed(size: int) -> str:
    count = size // 80
    inbounds = ",".join(f'{{"port":{1 + n % 65535},"tags":{{"kuma.io/service":"a"}}}}' for n in range(count))
    endpoints = ",".join(f'{{"inboundPort":7,"inboundPath":"/","path":"/{n}"}}' for n in range(count))
    return f'"inbound":[{inbounds}]}}, probes: {{"endpoints":[{endpoints}]'


def _select(expression: str) -> None:
    selectors = tuple(MetricSelector("Regex", text) for text in ("(a+)+$", expression))
    selection = Selection(SelectionSpec((), include=selectors))
    for number in range(20):
        selection.selects(b"a" * 1000 + b"%d!" % number)


def _samples(text: bytes) -> None:
    escaped_samples(text, "values")
    family = Family(b"h")
    family.kind = b"histogram"
    with_go_bounds(Piece(family, text))


def _bootstrap(data: bytes) -> None:
    tree = parse_bootstrap(b"static_resources: {listeners: [" + data + b"]}\nadmin: {address: {pipe: {path: /a}}}")
    secret_in(tree)
    without_token(tree)
    differences(tree, {"node": {}})
    guard(tree, strict=False, admin_port=9901)


def _secret(data: bytes) -> None:
    why_secret(field_bytes(1, b"type.googleapis.com/envoy.config.cluster.v3.Cluster") + field_bytes(2, data))


EXPOSITIONS = {
    "families of one sample": _numbered("m% 1\n"),
    "odd lines": _numbered("% ! ?\n"),
    "odd lines of one family": _repeated("a b c d\n"),
    "typed families": _numbered("# TYPE m% gauge\nm% 1\n"),
    "one family announced again and again": _repeated("# TYPE a gauge\n"),
    "two families in turn": _repeated("a 1\nb 1\n"),
    "remarks": _repeated("#\n"),
    "quoted names": _numbered('{"m.%","l.m"="x"} 1\n'),
    "quotes": _repeated('\\"', "\n", 'a{b="'),
    "braces": _repeated("{", "\n", "a"),
    "labels": _repeated('b="c",', "} 1\n", "a{"),
    "spaces": _repeated(" ", "x\n", "a"),
    "blanks within a line": _repeated("a " + " " * 500 + "1\n"),
    "digits": _repeated("1", "x\n", "a "),
    "exemplars": _repeated('a 1 # {b="c"} 1 1 1\n'),
    "times": _repeated("a 1 1700000000\n"),
    "carriage returns": _repeated("a 1\r"),
    "empty lines": _repeated("\n"),
    "bounds": _repeated('h_bucket{le="1.000"} 1\n', start="# TYPE h histogram\n"),
}
MB = 1 << 20
CASES = [
    Hostile("duration", _repeated("11h", "x"), parse_duration, 120),
    Hostile("duration of digits", _repeated("9", "s"), parse_duration),
    Hostile(
        "duration in a field",
        _repeated("9", "x"),
        lambda text: _dataplane(f"inbound: [{{serviceProbe: {{interval: {text}}}}}]"),
    ),
    Hostile("assignments", _repeated('a=b,"'), parse_assignments),
    Hostile("Corefile template", _repeated("{{"), lambda text: corefile.render(text, {}, "t")),
    Hostile("Corefile template of actions", _repeated("{{ .X }}\n"), lambda text: corefile.render(text, {"X": 1}, "t")),
    Hostile("Corefile template of ifs", _repeated("{{if .X}}a"), lambda text: corefile.render(text, {"X": 1}, "t")),
    Hostile("Corefile template of comments", _repeated("{{/* "), lambda text: corefile.render(text, {}, "t")),
    Hostile("Corefile template of blanks", _repeated(" ", "-}}", "{{ -"), lambda text: corefile.render(text, {}, "t")),
    Hostile(
        "CoreDNS's output of paths",
        _repeated("/Corefile" * 200 + "\n"),
        lambda text: corefile_check._parse(text, ""),
        1 << 17,
    ),
    Hostile("mustache", _repeated("{{"), lambda text: load_resource(text, "dp")),
    Hostile("mustache tags", _repeated("{{a}}\n"), lambda text: load_resource(text, "dp")),
    Hostile("mustache sections", _repeated("{{#a}}"), lambda text: load_resource(text, "dp")),
    Hostile("mustache closed sections", _repeated("{{#a}}{{/a}}"), lambda text: load_resource(text, "dp")),
    Hostile("mustache ends", _repeated("{{/a}}"), lambda text: load_resource(text, "dp")),
    Hostile("mustache blanks", _repeated(" ", "{{a}}"), lambda text: load_resource(text, "dp")),
    Hostile("mustache blanks in a tag", _repeated(" ", "}}", "{{"), lambda text: load_resource(text, "dp")),
    Hostile("inbounds", _numbered('{"port":1,"address":"10.0.%"},'), lambda text: _dataplane(f"inbound: [{text}]")),
    Hostile("inbounds on other ports", _numbered('{"port":%},'), lambda text: _dataplane(f"inbound: [{text}]")),
    Hostile("probes of inbounds", _probed, _dataplane),
    Hostile("unknown fields", _numbered('"inbount%":1,'), _dataplane),
    Hostile("a long unknown field", _repeated("x", ": 1", '? "'), _dataplane),
    Hostile(
        "an address of colons",
        _repeated(":", "x"),
        lambda text: load_resource(f"type: Dataplane\nname: a\nnetworking: {{address: '{text}'}}", "dp"),
    ),
    Hostile(
        "a host name",
        _repeated("a-", "!"),
        lambda text: load_resource(f"type: Dataplane\nname: a\nnetworking: {{address: '{text}'}}", "dp"),
    ),
    Hostile("a name", _repeated("a.", "!"), lambda text: load_resource(f"type: Dataplane\nname: '{text}'", "dp")),
    Hostile("YAML, deep", _repeated("["), lambda text: load_resource(text, "dp")),
    Hostile("YAML, deep blocks", _repeated("- "), lambda text: load_resource(text, "dp")),
    Hostile("YAML of aliases", _numbered("- &a% [*a, *a]\n"), lambda text: load_resource("- &a x\n" + text, "dp")),
    Hostile("YAML of base 60", _repeated(":59", "", "1"), lambda text: yamltext.load(text, yamltext.Bounds(1 << 21))),
    Hostile("YAML of digits", _repeated("9", ""), lambda text: yamltext.load(text, yamltext.Bounds(1 << 21))),
    Hostile("YAML, nearly a time", _repeated("1:1", "x"), lambda text: yamltext.load(text, yamltext.Bounds(1 << 21))),
    Hostile(
        "YAML, merged",
        _numbered("b%: {<<: [*a, *a]}\n"),
        lambda text: yamltext.load("a: &a {x: 1}\n" + text, yamltext.Bounds(1 << 21)),
    ),
    Hostile("JSON, deep", _bytes(_repeated("[")), decode_json),
    Hostile("JSON of digits", _bytes(_repeated("9")), decode_json),
    Hostile("JSON with halves of pairs", _bytes(_repeated("\\ud800")), repair),
    Hostile("a policy", _bytes(_repeated('{"observability":{"metrics":')), lambda data: decode(MESH_METRIC, data)),
    Hostile(
        "names",
        _bytes(_numbered('{"name":"n%","ips":[]},')),
        lambda data: decode(DNS, b'{"records":[' + data[:-1] + b"]}"),
        8 * MB,
    ),
    Hostile("an expression", _repeated("(a*)*", "$"), _select, 60 << 10),
    Hostile("an expression of repetitions", _repeated("{9}", "", "a"), _select, 60 << 10),
    Hostile("Accept", _repeated("*/*;q=0.1,"), lambda text: (choose(text, ()), accept_for_sources(text)), 8 << 10),
    Hostile("Accept of parameters", _repeated(";", "", "text/plain"), lambda text: choose(text, ()), 8 << 10),
    Hostile("lines with quoted names", _bytes(_repeated('{"a.b",')), _samples),
    Hostile("lines with bounds", _bytes(_repeated('le="1e')), _samples),
    Hostile("clusters", _bytes(_numbered('c{envoy_cluster_name="a%-0011223344556677"} 1\n')), _envoys, 8 * MB),
    Hostile("clusters without names", _bytes(_repeated('c{envoy_cluster_name="')), _envoys, 1000),
    Hostile(
        "DNS: labels", lambda size: b"\0\1\0\0\0\1\0\0\0\0\0\0" + b"\1a" * (size // 2), message.parse_query, 64 << 10
    ),
    Hostile(
        "DNS: pointers",
        lambda size: b"\0\1\0\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c" * (size // 2),
        message.parse_query,
        64 << 10,
    ),
    Hostile("PEM of beginnings", _bytes(_repeated("-----BEGIN CERTIFICATE-----\n")), read_anchors),
    Hostile("PEM of dashes", _bytes(_repeated("-----")), read_anchors),
    Hostile("PEM of blanks", _bytes(_repeated("\n \t")), read_anchors),
    Hostile("PEM of one long line", _bytes(_repeated("A", "", "-----BEGIN CERTIFICATE-----\n")), read_anchors),
    Hostile(
        "bootstrap of listeners",
        _bytes(_numbered('{name: l%, address: {socket_address: {address: "::"}}},')),
        _bootstrap,
    ),
    Hostile("bootstrap of headers", _bytes(_numbered('{key: authorization, value: "eyJ%"},')), _bootstrap),
    Hostile("resolv.conf", _numbered("nameserver 10.0.0.%\n"), resolvconf.parse),
    Hostile("resolv.conf, one line", _repeated("options "), resolvconf.parse),
    Hostile("token", _repeated("a."), lambda text: check_token(text, "t")),
    Hostile("token of one part", _repeated("eyJ", ".eyJ."), expires_at),
    Hostile("a resource with beginnings of tokens", _bytes(_repeated("eyJ")), _secret, 4 * MB),
    Hostile("a resource of type names", _bytes(_repeated("\n\x7fa/a.a")), _secret, 4 * MB),
    Hostile("a resource with words", _bytes(_repeated("\n\x20\n\x10authorization")), _secret, 4 * MB),
    Hostile("a response", lambda size: b"\x12\0" * (size // 2), lambda data: _no(Response.parse, data), 4 * MB),
    Hostile("a request", lambda size: b"\x1a\0" * (size // 2), lambda data: _no(Request.parse, data), 4 * MB),
    Hostile("Envoy's output", _repeated("error `"), lambda text: configuration_error([text])),
    Hostile("Envoy's output with ends", _repeated("error `a` "), lambda text: configuration_error([text])),
    Hostile("a version", _repeated("9", ".1.1"), is_supported),
    Hostile("Retry-After", _repeated("9 "), lambda text: _retry_after({"retry-after": text}), 64 << 10),
    Hostile("Retry-After of colons", _repeated("1:"), lambda text: _retry_after({"retry-after": text}), 64 << 10),
    Hostile("a line of an access log", _bytes(_repeated('{"address":')), records.parse),
    Hostile("an old line of an access log", _bytes(_repeated("a;")), records.parse),
    Hostile("a probe's path", _repeated("/../a"), lambda text: (clean_path(text), parse_request(text, "")), 64 << 10),
    Hostile(
        "OTEL variables",
        _repeated("a=b,"),
        lambda text: environment.read_environment({"OTEL_EXPORTER_OTLP_HEADERS": text}),
        128 << 10,
    ),
    *(Hostile(f"metrics: {name}", _bytes(make), _expose, 16 * MB) for name, make in EXPOSITIONS.items()),
    Hostile("metrics: a line in small parts", _bytes(_repeated("a")), _line_by_line),
]


def _no(parse: Callable[[bytes], Any], data: bytes) -> object:
    parsed = parse(data)
    return parsed.digest if isinstance(parsed, Response) else parsed
