"""Files and messages of a previous kumadp, of other processes, and of the control plane: state, handover, tokens."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
from hypothesis import strategies as st

from kumadp.bootstrap.prepare import Aggregated
from kumadp.controlplane.source_file import Source, read_source
from kumadp.controlplane.token import check_token, expires_at, is_renewed_by_kubelet
from kumadp.core.previous import DaemonSection, Previous, decode_section
from kumadp.daemon.log_levels import LogLevelsSection
from kumadp.decoding import Undecodable, decode_msgpack
from kumadp.dns.resolver.table import HandedNames, Table
from kumadp.envoy.adopted_envoy import EnvoySection
from kumadp.errors import ControlPlaneRefused, HandoverFailed
from kumadp.host.net.tls import NoTrustAnchor, _subject, client_context, read_anchors
from kumadp.host.process_identity import boot_id
from kumadp.host.reexec.handover import FORMAT, Handover
from kumadp.host.reexec.interim_responder import InterimAnswer
from kumadp.host.state_file import ChildRecord, SavedState, adoptable, read_state
from kumadp.host.work_dir import SOURCE_FILE, STATE_FILE, HandedWorkDir
from kumadp.otel import environment
from kumadp.process.child import HandedChild
from kumadp.process.log_pump import OutputState
from kumadp.process.supervisor import PreviousDeaths
from kumadp.relay.last_good import MAGIC, Binding, LastGood, LastGoodUnusable, read_copy, why_left_out
from kumadp.relay.part import RelaySection
from kumadp.relay.snapshot import RelaySnapshot, TypeSnapshot
from kumadp.relay.state_machine import RelayStateMachine
from kumadp.resources.dynconf_bodies import DnsBody, InvalidBody, MeshMetricBody, decode
from kumadp.resources.expressions import BadExpression, compiled
from tests.fuzz.structure import json_trees, msgpack_trees
from tests.fuzz.target import Scratch, Target, captured

_state = Scratch(STATE_FILE)
_source = Scratch(SOURCE_FILE)
_last_good = Scratch("last-good.msgpack")
_BINDING = Binding("default", "a", "https://cp:5678", "1.40")
_CLUSTERS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "daemon": DaemonSection, "relay": RelaySection, "envoy": EnvoySection, "dns": HandedNames, "log": LogLevelsSection,
}  # fmt: skip


def _state_file(data: bytes) -> None:
    path = _state.write(data)
    saved = read_state(path.parent)
    if saved is None:
        return
    adoptable(saved)
    previous = Previous(state=saved.parts)
    for kind in (dict[str, int], tuple[str, ...], RelaySnapshot):
        for key in saved.parts:
            previous.recorded(key, kind)


def _saved() -> list[bytes]:
    child = ChildRecord("envoy", 4_000_000, 12, 0, "/usr/bin/envoy", "/usr/bin/envoy", "aa", "/run/f")
    parts = {"ports": {"admin": 9901}, "removed_at_end": ["bootstrap.json"], "envoy": {"epoch": 1, "base_id": 7}}
    state = SavedState(1, boot_id(), 1, 5, (child,), parts)
    return [json.dumps(state, default=msgspec.to_builtins).encode(), msgspec.json.encode(state)]


def _source_file(data: bytes) -> None:
    read_source(_source.write(data).parent)


def _sources() -> list[bytes]:
    source = Source({"node": {"id": "a"}}, "x", 1.5, "10.0.0.1", (Aggregated("a", "", 80, "/m"),), "digest")
    return [msgspec.json.encode(source)]


def _memory() -> RelaySnapshot:
    return RelaySnapshot((TypeSnapshot(_CLUSTERS, ("a",), b"\x22\x01t", None, (b"x" * 32,), versions=("1",)),))


def _last_good_file(data: bytes) -> None:
    """The digest is right: what a user may write is checked for form."""
    import hashlib

    path = _last_good.write(MAGIC + hashlib.sha256(data).digest() + data)
    copy = read_copy(path, _BINDING, 1e9, path.stat().st_mtime)
    _restored(copy.memory)


def _restored(memory: RelaySnapshot) -> None:
    machine = RelayStateMachine(b"\x0a\x01a")
    machine.restore(memory)
    machine.snapshot()
    for saved in memory.types:
        why_left_out(saved)


def _last_goods() -> list[bytes]:
    copy = LastGood(_BINDING, {"node": {"id": "a"}}, None, _memory(), {"t": "why"}, 5.0, "d")
    return [msgspec.msgpack.encode(copy)]


def _handover(data: bytes) -> None:
    try:
        handover = decode_msgpack(data, Handover)
    except Undecodable:
        return
    for name, section in handover.sections.items():
        kind = _SECTIONS.get(name)
        if kind is None:
            continue
        decoded = decode_section(name, section, kind)
        if isinstance(decoded, HandedNames):
            Table.of(decoded.table, ("mesh",)).handed()
        elif isinstance(decoded, RelaySection):
            _restored(decoded.memory)


def _handovers() -> list[bytes]:
    log = msgspec.msgpack.encode(LogLevelsSection({"level": "debug"}))
    dns = msgspec.msgpack.encode(
        {"table": {"names": {b"\1a\0": [b"", b"", b"", b""]}, "empty": [], "ttl": 1, "filtered": False}}
    )
    daemon = DaemonSection(
        HandedWorkDir("/run/kumadp", False, 5),
        True,
        1.5,
        (HandedChild("envoy", 12, 34, True, 6, "/run/f", OutputState(b"x", False, ("y",))),),
        2.5,
        {"admin": 9901},
        {"envoy": PreviousDeaths(1, "signal 9", 1.0, {"signal 9": 1})},
    )
    more = {"daemon": msgspec.msgpack.encode(daemon), "relay": msgspec.msgpack.encode(RelaySection(_memory()))}
    handover = Handover(FORMAT, 1, 1, "0.1", (), (5, 6), {"log": log, "dns": dns, **more}, InterimAnswer((), b"x"))
    return [msgspec.msgpack.encode(handover)]


def _token(data: bytes) -> None:
    text = data.decode("utf-8", "replace").strip()
    expires_at(text)
    is_renewed_by_kubelet(text)
    check_token(text, "the token")


def _jwt(header: Any, claims: Any, end: str = "c2ln") -> bytes:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    return b".".join((*parts, end.encode()))


def _jwts() -> st.SearchStrategy[bytes]:
    value = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=2)
    )
    tree = st.dictionaries(st.sampled_from(["alg", "exp", "Name", "Mesh", "kubernetes.io"]), value, max_size=4)
    return st.tuples(st.one_of(tree, value), st.one_of(tree, value), st.text("ab-_=.", max_size=5)).map(
        lambda parts: _jwt(*parts)
    )


def _dynconf(path: str) -> Any:
    def parse(data: bytes) -> None:
        body = decode(path, data)
        if isinstance(body, DnsBody):
            table = Table(((record.name, record.ips or ()) for record in body.records or ()), ttl=body.ttl)
            assert len(table) <= len(body.records or ())
        elif isinstance(body, MeshMetricBody):
            from kumadp.metrics.labels import Labels
            from kumadp.metrics.profiles import Selection, SelectionSpec

            metrics = body.observability.metrics
            Labels(metrics.extra_labels or {})
            profiles = metrics.sidecar.profiles if metrics.sidecar is not None else None
            if profiles is not None:
                names = tuple(profile.name for profile in profiles.append_profiles or ())
                spec = SelectionSpec(names, exclude=profiles.exclude or (), include=profiles.include or ())
                Selection(spec).selects(b"envoy_cluster_upstream_cx_total")

    return parse


def _bodies(pattern: str, *more: bytes) -> Any:
    return lambda: [*more, *(capture[:3500] for capture in captured(pattern))]


def _expression(data: bytes) -> None:
    compiled(data)(b"envoy_cluster_upstream_cx_total")


def _pem(data: bytes) -> None:
    anchors = read_anchors(data)
    for certificate in anchors.certificates:
        _subject(certificate)
    client_context(anchors)


def _certificates() -> list[bytes]:
    import trustme

    authority = trustme.CA()
    pem = authority.cert_pem.bytes()
    return [pem, pem.replace(b"\n", b"\r\n") + pem, b"text\n" + pem[:-30], pem.decode().encode("utf-16")]


def _otel(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape").replace("\0", "")
    names = ("HEADERS", "ENDPOINT", "TIMEOUT", "COMPRESSION", "PROTOCOL", "INSECURE")
    variables = environment.read_environment({f"OTEL_EXPORTER_OTLP_{name}": text for name in names})
    environment.inventory(variables)
    list(variables.secrets())


TARGETS = (
    Target(
        "state-file", _state_file, _saved, (), (b'"children":', b'"pid":', b'"parts":', b"null", b"[]", b"{}", b"-1"),
        lines=80, lines_base=8000, memory=300, memory_base=100_000, structure=json_trees,
    ),
    Target(
        "bootstrap-file", _source_file, _sources, (), (b'"tree":', b'"at":', b"null", b"[]", b"{}", b"1e999"),
        lines=60, lines_base=5000, memory=300, memory_base=100_000, structure=json_trees,
    ),
    Target(
        "last-good-file", _last_good_file, _last_goods, (LastGoodUnusable,),
        (b"\x80", b"\x90", b"\xc0", b"\xc4\x00", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xcb", b"\xa0", b"\x93"),
        lines=150, lines_base=8000, memory=600, memory_base=150_000, structure=msgpack_trees,
    ),
    Target(
        "handover", _handover, _handovers, (HandoverFailed,),
        (b"\x80", b"\x90", b"\xc0", b"\xc4\x00", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xcb", b"\xa0"),
        lines=100, lines_base=8000, memory=400, memory_base=100_000, structure=msgpack_trees,
    ),
    Target(
        "token", _token, lambda: [_jwt({"alg": "RS256"}, {"exp": 1.9e9, "Name": "a"}), _jwt({"alg": "none"}, {})],
        (ControlPlaneRefused,), (b".", b"eyJ", b"=", b"-_", b"\n", b"e30"), _jwts, memory=100,
    ),
    Target(
        "dynconf-dns", _dynconf("/dns"),
        _bodies("*/*/dynconf/dns.json", b'{"records":[{"name":"a.b.mesh","ips":["10.0.0.1","fd00::1"]}],"ttl":30}'),
        (InvalidBody,), (b'"name":', b'"ips":', b"null", b"[]", b"..", b"a." * 130, b"-1", b"1e99"),
        lines=100, lines_base=5000, memory=600, memory_base=100_000, structure=json_trees,
    ),
    Target(
        "dynconf-metrics", _dynconf("/meshmetric"),
        _bodies(
            "*/*/dynconf/meshmetric.json",
            b'{"observability":{"metrics":{"applications":[{"port":80,"path":"/m"}],"extraLabels":{"a b":""},"sidecar":'
            b'{"profiles":{"appendProfiles":[{"name":"Basic"}],"include":[{"type":"Regex","match":"a.*"}]}}}}}',
        ),
        (InvalidBody,), (b'"match":', b'"type":"Regex"', b"null", b"[]", b"(a*)*", b"[[:alpha:]]", b"\\\\p{", b"(?i)"),
        lines=100, lines_base=8000, memory=600, memory_base=200_000, structure=json_trees,
    ),
    Target(
        "dynconf-otel", _dynconf("/otel"),
        lambda: [
            b'{"backends":[{"socketPath":"/run/a.sock","endpoint":"otel:4317","useHTTP":true,"envPolicy":{"mode":"Optional"},'
            b'"traces":{"enabled":true,"overrideKinds":["headers"],"refreshInterval":"1m"}}]}'
        ],
        (InvalidBody,), (b"null", b"[]", b"{}", b"true", b'"name":'), memory=300, structure=json_trees,
    ),
    Target(
        "regular-expression", _expression, lambda: [b"envoy_(cluster|http)_.*_total$", b"(?i)a{1,3}[^b]*\\d+"],
        (BadExpression,), (b"(", b")", b"{9}", b"{1,1000}", b"[^", b"\\p{Greek}", b"(?P<n>", b"|", b"*"), largest=2000,
    ),
    Target(
        "pem", _pem, _certificates, (NoTrustAnchor,),
        (b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"-----", b"\0", b"Proc-Type: 4", b"=", b"\n"),
        lines=60, lines_base=20_000, memory=300, memory_base=400_000,
    ),
    Target(
        "otel-variables", _otel, lambda: [b"a=b,c=%20d", b"http://[::1]:4317/v1", b"10000", b"gzip"], (),
        (b"=", b",", b"%", b"http://", b"[", b"]", b"://", b"\xff"), lines=200, lines_base=12_000, memory=600,
        memory_base=60_000, largest=2000,
    ),
)  # fmt: skip
