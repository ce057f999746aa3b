"""Expositions of Envoy and of applications, what a scraper accepts, and records of access logs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from kumadp.accesslog import records
from kumadp.exposition.names import SCHEMES
from kumadp.exposition.reader import ExpositionReader, ExpositionTooLarge, LineTooLong, Piece
from kumadp.metrics.bounds import with_go_bounds
from kumadp.metrics.clusters import ClusterMerger
from kumadp.metrics.formats import Format, FormatConverter, accept_for_sources, choose, escaping_of, format_of
from kumadp.metrics.labels import Labels
from kumadp.metrics.profiles import Selection, SelectionSpec
from tests.fuzz.structure import json_trees
from tests.fuzz.target import Target, captured

if TYPE_CHECKING:
    from collections.abc import Callable

_WORDS = (
    b"# TYPE ", b"# HELP ", b"# UNIT ", b"# EOF\n", b" histogram\n", b" counter\n", b"_bucket", b"_total", b'{le="',
    b'quantile="', b'envoy_cluster_name="', b"-0011223344556677", b' # {a="b"} 1 ', b"NaN", b"+Inf", b'{"a.b",', b'\\"',
    b"1.5e-7", b" 1700000000",
)  # fmt: skip
_LABELS = {"mesh": "default", "le": 'a"b'}


def _pieces(reader: ExpositionReader, data: bytes) -> list[Piece]:
    middle = len(data) // 2
    return [*reader.feed(data[:middle]), *reader.feed(data[middle:]), *reader.end()]


def _application(source: Format, target: Format) -> Callable[[bytes], None]:
    def parse(data: bytes) -> None:
        reader = ExpositionReader(checks=True, is_openmetrics=source.is_openmetrics)
        pieces = [piece for piece in _pieces(reader, data) if piece.family.name not in reader.invalid]
        labels = Labels(_LABELS)
        for scheme in SCHEMES:
            converter = FormatConverter(source, target, scheme)
            written = b"".join(
                converted.family.header() + converted.samples
                for piece in pieces
                if (converted := labels.add(with_go_bounds(converter.convert(piece)))).family.name
            )
            # What is written is read by a scraper as a whole: one invalid line costs all.
            check = ExpositionReader(checks=True, is_openmetrics=target.is_openmetrics)
            list(check.feed(written))
            list(check.end())
            assert not check.invalid, (scheme, written)

    return parse


def _envoy(data: bytes) -> None:
    reader, clusters = ExpositionReader(checks=False), ClusterMerger()
    selection, labels = Selection(SelectionSpec(("Basic",))), Labels({"mesh": "default"})
    for piece in _pieces(reader, data):
        for merged in clusters.take(piece):
            if (selected := selection.select(with_go_bounds(merged))) is not None:
                labels.add(selected)
    list(clusters.end())


def _exposition() -> st.SearchStrategy[bytes]:
    name = st.sampled_from(["m", "a_total", "h", "h_bucket", "h_sum", "x_info", "s", '{"a.b"}', '{"a.b",c="d"}', "é"])
    labels = st.sampled_from(["", '{a="b"}', '{le="1.000"}', '{quantile="0.5",}', '{"l.m"="x"}', '{a="\\"\\n"}', "{"])
    value = st.sampled_from(["1", "NaN", "+Inf", "1.50", "1e400", "x", "-0", "0x1", ""])
    sample = st.tuples(name, labels, st.just(" "), value, st.sampled_from(["", " 17000", " 1.5", ' # {a="b"} 1'])).map(
        "".join
    )
    comment = st.tuples(
        st.sampled_from(["# TYPE ", "# HELP ", "# UNIT ", "#"]),
        name,
        st.sampled_from([" counter", " histogram", " summary", " info", " bytes", " x", "", " untyped"]),
    ).map("".join)
    return st.lists(st.one_of(sample, comment, st.just(""), st.just("# EOF")), max_size=30).map(
        lambda lines: "\n".join(lines).encode()
    )


def _seeds() -> list[bytes]:
    return [
        b'# HELP h A.\n# TYPE h histogram\nh_bucket{le="1.0"} 1\nh_bucket{le="+Inf"} 2 17\nh_sum 3\nh_count 2\n',
        b'# TYPE a counter\n# UNIT a bytes\na_total{x="y"} 1 # {t="u"} 1 1\n# TYPE i info\ni_info{v="1"} 1\n# EOF\n',
        b'# TYPE "a.b" gauge\n{"a.b","l.m"="x"} 1\n{"a.b",l="y"} 2 1700000000\nplain 1\n',
        *(capture[:4000] for capture in captured("*/full/*.prom")),
    ]


def _clusters() -> list[bytes]:
    return [
        b'# TYPE c gauge\nc{envoy_cluster_name="a-0011223344556677"} 1\nc{envoy_cluster_name="a-0011223344556678"} 2\n',
        b'# TYPE h counter\nh{envoy_http_conn_manager_prefix="127_0_0_1_80",x="y"} 1 17\nh{envoy_http="x"} 1\n',
        *(capture[:6000] for capture in captured("*/full/envoy_stats.prom")),
    ]


def _accept(data: bytes) -> None:
    text = data.decode("latin-1")
    format_of(text)
    form = choose(text, (Format.TEXT,))
    escaping_of(text, form)
    accept_for_sources(text)


def _record(data: bytes) -> None:
    parsed = records.parse(data)
    if parsed is not None:
        address, payload = parsed
        assert isinstance(payload, bytes)
        split = records.split_address(address)
        assert split is None or 0 < split[1] < 65536


def _record_json() -> st.SearchStrategy[bytes]:
    value = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
        max_leaves=8,
    )
    address = st.sampled_from(["127.0.0.1:80", "[::1]:9", "a:٣", ":1", "x", "a:65536", "\ud800:1"])
    return st.tuples(address, value).map(
        lambda pair: json.dumps({"address": pair[0], "message": pair[1]}).encode("utf-8", "surrogatepass")
    )


TARGETS = (
    Target(
        "metrics-text", _application(Format.TEXT, Format.TEXT), _seeds, (LineTooLong, ExpositionTooLarge), _WORDS,
        _exposition, lines=80, lines_base=12_000, memory=500, memory_base=150_000,
    ),
    Target(
        "metrics-to-openmetrics", _application(Format.TEXT, Format.OPENMETRICS_1), _seeds,
        (LineTooLong, ExpositionTooLarge), _WORDS, _exposition, lines=80, lines_base=12_000, memory=500,
        memory_base=150_000,
    ),
    Target(
        "metrics-openmetrics-to-text", _application(Format.OPENMETRICS_1, Format.TEXT), _seeds,
        (LineTooLong, ExpositionTooLarge), _WORDS, _exposition, lines=80, lines_base=12_000, memory=500,
        memory_base=150_000,
    ),
    Target(
        "metrics-openmetrics", _application(Format.OPENMETRICS_1, Format.OPENMETRICS_1), _seeds,
        (LineTooLong, ExpositionTooLarge), _WORDS, _exposition, lines=80, lines_base=12_000, memory=500,
        memory_base=150_000,
    ),
    Target(
        "metrics-envoy", _envoy, _clusters, (LineTooLong, ExpositionTooLarge), _WORDS, _exposition, lines=60,
        lines_base=8000, memory=400, memory_base=150_000, largest=8192,
    ),
    Target(
        "metrics-accept",
        _accept,
        lambda: [
            b"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        ],
        words=(b";q=", b"q*", b"escaping=", b"version=", b"text/*", b"nan", b"inf"),
        lines=120,
        memory=400,
    ),
    Target(
        "access-log-record",
        _record,
        lambda: [
            b'{"address":"127.0.0.1:9000","message":"[2026-11-30] GET / 200\\n"}',
            b'{"address":"[::1]:9000","message":{"a":1.5e21,"b":[1,null,true],"c":"\\ud83d\\ude00<"}}',
            b"127.0.0.1:9000;GET / HTTP/1.1",
        ],
        words=(b'{"address":', b'"message":', b"\\ud800", b"[[[[", b'{"a":', b"1e308", b";"),
        grammar=_record_json,
        memory=200, structure=json_trees,
    ),
)  # fmt: skip
