"""Envoy's metrics without a policy: clusters of one service are summed, mesh traffic is marked."""

from __future__ import annotations

import pytest

from kumadp.exposition.reader import SLICE, ExpositionReader
from kumadp.metrics.clusters import ClusterMerger

ONE, TWO = "-00112233445566ff", "-FFEEDDCCBBAA9988"
MESH = ',kuma_io_mesh_traffic="true"'
OWN_CLUSTERS = (
    "ads_cluster",
    "access_log_sink",
    "system_ads",
    "system_access_log_sink",
    "kuma_envoy_admin",
    "kuma_metrics_hijacker",
)


def merged(text: str, size: int = 1 << 20) -> tuple[str, int]:
    """Return the merged exposition, and the number of dropped families."""
    reader, merger = ExpositionReader(checks=False), ClusterMerger()
    data = text.encode()
    pieces = [piece for at in range(0, len(data), size) for piece in reader.feed(data[at : at + size])]
    output, previous = [], None
    for piece in [*pieces, *reader.end()]:
        for family, samples in merger.take(piece):
            output.append((b"" if family is previous else family.header()) + samples)
            previous = family
    for family, samples in merger.end():
        output.append((b"" if family is previous else family.header()) + samples)
        previous = family
    return b"".join(output).decode(), merger.skipped


CASES = {
    "a counter is summed, the others stay": (
        f"""# TYPE c counter
c{{envoy_cluster_name="b{ONE}"}} 3
c{{envoy_cluster_name="other"}} 7
c{{envoy_cluster_name="b{TWO}"}} 4
""",
        f"""# TYPE c counter
c{{envoy_cluster_name="b"{MESH}}} 7
c{{envoy_cluster_name="other"{MESH}}} 7
""",
    ),
    "a hash elsewhere stays": (
        f"""# TYPE c counter
c{{a="x{ONE}",envoy_cluster_name="b{ONE}"}} 3
c{{envoy_cluster_name="b{TWO}",my_envoy_cluster_name="b{TWO}"}} 4
c{{a="x{ONE}",envoy_cluster_name="b{TWO}"}} 5
""",
        f"""# TYPE c counter
c{{a="x{ONE}",envoy_cluster_name="b"{MESH}}} 8
c{{envoy_cluster_name="b",my_envoy_cluster_name="b{TWO}"{MESH}}} 4
""",
    ),
    "with a cluster that has no hash": (
        f'c{{envoy_cluster_name="b"}} 1\nc{{envoy_cluster_name="b{ONE}"}} 2\n',
        f'c{{envoy_cluster_name="b"{MESH}}} 3\n',
    ),
    "by all labels": (
        f"""# TYPE c gauge
c{{code="200",envoy_cluster_name="b{ONE}"}} 1
c{{code="503",envoy_cluster_name="b{ONE}"}} 2
c{{code="200",envoy_cluster_name="b{TWO}"}} 4
""",
        f"""# TYPE c gauge
c{{code="200",envoy_cluster_name="b"{MESH}}} 5
c{{code="503",envoy_cluster_name="b"{MESH}}} 2
""",
    ),
    "a histogram, bucket by bucket": (
        f"""# TYPE h histogram
h_bucket{{envoy_cluster_name="b{ONE}",le="0.5"}} 1
h_bucket{{envoy_cluster_name="b{ONE}",le="+Inf"}} 2
h_sum{{envoy_cluster_name="b{ONE}"}} 1.25
h_count{{envoy_cluster_name="b{ONE}"}} 2
h_bucket{{envoy_cluster_name="b{TWO}",le="0.5"}} 10
h_bucket{{envoy_cluster_name="b{TWO}",le="+Inf"}} 20
h_sum{{envoy_cluster_name="b{TWO}"}} 0.5
h_count{{envoy_cluster_name="b{TWO}"}} 20
""",
        f"""# TYPE h histogram
h_bucket{{envoy_cluster_name="b",le="0.5"{MESH}}} 11
h_bucket{{envoy_cluster_name="b",le="+Inf"{MESH}}} 22
h_sum{{envoy_cluster_name="b"{MESH}}} 1.75
h_count{{envoy_cluster_name="b"{MESH}}} 22
""",
    ),
    "a summary, quantile by quantile": (
        f"""# TYPE s summary
s{{envoy_cluster_name="b{ONE}",quantile="0.5"}} NaN
s_sum{{envoy_cluster_name="b{ONE}"}} 1e+06
s{{envoy_cluster_name="b{TWO}",quantile="0.5"}} 2
s_sum{{envoy_cluster_name="b{TWO}"}} 1
""",
        f"""# TYPE s summary
s{{envoy_cluster_name="b",quantile="0.5"{MESH}}} NaN
s_sum{{envoy_cluster_name="b"{MESH}}} 1000001
""",
    ),
    "timestamps are removed": (
        f'c{{envoy_cluster_name="b{ONE}"}} 1 1700000000000\nc{{envoy_cluster_name="b{TWO}"}} 2 1700000000000\n',
        f'c{{envoy_cluster_name="b"{MESH}}} 3\n',
    ),
    "other suffixes stay": (
        'c{envoy_cluster_name="b-0011223344556677a"} 1\nc{envoy_cluster_name="b-00112233445566g7"} 2\n'
        'c{envoy_cluster_name="b",x="-00112233445566ff"} 3\n',
        f'c{{envoy_cluster_name="b-0011223344556677a"{MESH}}} 1\nc{{envoy_cluster_name="b-00112233445566g7"{MESH}}} 2\n'
        f'c{{envoy_cluster_name="b",x="-00112233445566ff"{MESH}}} 3\n',
    ),
    "Kuma's own clusters are not mesh traffic": (
        "".join(f'c{{envoy_cluster_name="{name}"}} 1\n' for name in (*OWN_CLUSTERS, "ads_cluster_2")),
        "".join(f'c{{envoy_cluster_name="{name}"}} 1\n' for name in OWN_CLUSTERS)
        + f'c{{envoy_cluster_name="ads_cluster_2"{MESH}}} 1\n',
    ),
    "by the connection manager": (
        'h{envoy_http_conn_manager_prefix="admin"} 1\nh{envoy_http_conn_manager_prefix="backend"} 2\n'
        'h{envoy_http_conn_manager_prefix="kuma_metrics_prometheus"} 3\nh{x="y"} 4\n'
        'h{envoy_http_conn_manager_prefix="b-00112233445566ff"} 5\n',
        f'h{{envoy_http_conn_manager_prefix="admin"}} 1\nh{{envoy_http_conn_manager_prefix="backend"{MESH}}} 2\n'
        'h{envoy_http_conn_manager_prefix="kuma_metrics_prometheus"} 3\nh{x="y"} 4\n'
        f'h{{envoy_http_conn_manager_prefix="b-00112233445566ff"{MESH}}} 5\n',
    ),
    "other families are unchanged": (
        '# TYPE envoy_server_live gauge\nenvoy_server_live 1\n# TYPE x counter\nx{y="z"} 1\n',
        '# TYPE envoy_server_live gauge\nenvoy_server_live 1\n# TYPE x counter\nx{y="z"} 1\n',
    ),
    "with values that look like ends of labels": (
        'c{a="\\"} 1",envoy_cluster_name="b"} 1\nc{envoy_cluster_name="b",z="}"} 2\n',
        f'c{{a="\\"}} 1",envoy_cluster_name="b"{MESH}}} 1\nc{{envoy_cluster_name="b",z="}}"{MESH}}} 2\n',
    ),
}


@pytest.mark.parametrize("size", [1 << 20, 7])
@pytest.mark.parametrize("case", CASES)
def test_merging(case: str, size: int) -> None:
    text, expected = CASES[case]
    assert merged(text, size) == (expected, 0)


def test_a_family_with_a_sample_without_cluster_is_dropped() -> None:
    good = '# TYPE a counter\na{envoy_cluster_name="b"} 1\n'
    odd = '# TYPE o counter\no{envoy_cluster_name="b"} 1\no{x="y"} 2\n'
    assert merged(good + odd + good.replace("a", "z")) == (
        merged(good)[0] + merged(good.replace("a", "z"))[0],
        1,
    )


def test_large_families_are_returned_in_slices() -> None:
    lines = "".join(f'c{{envoy_cluster_name="b{number}{ONE}"}} 1\n' for number in range(9000))
    reader, merger = ExpositionReader(checks=False), ClusterMerger()
    pieces = [output for piece in reader.feed(lines.encode()) for output in merger.take(piece)] + list(merger.end())
    assert max(len(piece.samples) for piece in pieces) < 2 * SLICE
    assert sum(piece.samples.count(b"\n") for piece in pieces) == 9000
