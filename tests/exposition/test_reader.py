"""An exposition read in parts of any size: families, pieces, invalid lines."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kumadp.exposition.reader import LONGEST_LINE, SLICE, ExpositionReader, Family, LineTooLong, Piece

TEXT = b"""# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{code="200",path="/a b{c} \\" 1"} 3
requests_total{code="500"} 1 1700000000000
# a remark
# TYPE took histogram
took_bucket{le="1"} 1
took_bucket{le="+Inf"} 2
took_sum 1.5
took_count 2

bare 1
bare_too 2
# TYPE left gauge
"""


def read(*parts: bytes, checks: bool = True) -> tuple[list[tuple[bytes, bytes, bytes]], set[bytes]]:
    """Name, kind and samples of each family, and the names of invalid families."""
    reader = ExpositionReader(checks=checks)
    families: list[tuple[Family, list[bytes]]] = []

    def collect(pieces: list[Piece]) -> None:
        for family, samples in pieces:
            if not families or families[-1][0] is not family:
                families.append((family, []))
            families[-1][1].append(samples)

    for part in parts:
        collect(list(reader.feed(part)))
    collect(list(reader.end()))
    result = [(family.name, family.kind, b"".join(samples)) for family, samples in families]
    return [family for family in result if family[0] not in reader.invalid], reader.invalid


def test_families_by_comments_and_names() -> None:
    families, invalid = read(TEXT)
    assert [(name, kind, samples.count(b"\n")) for name, kind, samples in families] == [
        (b"requests_total", b"counter", 2),
        (b"took", b"histogram", 4),
        (b"bare", b"untyped", 1),
        (b"bare_too", b"untyped", 1),
        (b"left", b"gauge", 0),
    ]
    assert not invalid


def test_comments_belong_to_their_family() -> None:
    family = next(iter(ExpositionReader(checks=False).feed(TEXT))).family
    assert family.header() == b"# HELP requests_total Requests.\n# TYPE requests_total counter\n"


@settings(deadline=None)
@given(st.lists(st.integers(1, len(TEXT)), max_size=8))
def test_parts_of_any_size(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    assert read(*(TEXT[a:b] for a, b in itertools.pairwise(edges))) == read(TEXT)


NAME = st.sampled_from(["a", "a_bucket", "a_sum", "a_total", "ab", "b:c"])
VALUE = st.sampled_from(["1", "-2.5e+06", "NaN", "+Inf"])
LABELS = st.one_of(
    st.just(""),
    st.dictionaries(st.sampled_from(["le", "x", "envoy_cluster_name"]), st.text(max_size=5), min_size=1).map(
        lambda families: "{" + ",".join(f'{name}="{escape(text)}"' for name, text in families.items()) + "}"
    ),
)
TYPE = st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped"])
LINE = st.one_of(
    st.tuples(NAME, LABELS, VALUE).map(lambda parts: f"{parts[0]}{parts[1]} {parts[2]}"),
    st.tuples(NAME, TYPE).map(lambda parts: f"# TYPE {parts[0]} {parts[1]}"),
    st.sampled_from(["", "# remark", "# EOF", "a 1 1700000000"]),
)


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "")


@settings(deadline=None)
@given(st.lists(LINE, max_size=12), st.integers(1, 40))
@example(["# TYPE a histogram", 'a_bucket{le="1"} 1', "a 1"], 7)
def test_no_sample_is_lost_or_added(lines: list[str], size: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    families, invalid = read(*(data[at : at + size] for at in range(0, len(data), size)))
    assert not invalid
    samples = [line for line in data.split(b"\n") if line and not line.startswith(b"#")]
    assert [line for _, _, block in families for line in block.splitlines()] == b"\n".join(samples).splitlines()


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_arbitrary_bytes(data: bytes, size: int) -> None:
    read(*(data[at : at + size] for at in range(0, len(data), size)))


@pytest.mark.parametrize(
    "line",
    [
        "<html>",
        '{"a": 1}',
        "a{b=} 1",
        "a",
        'a{b="c} 1',
        "a 1 2 3",
        "a one",
        "a 1.2.3",
        "a 1 1.5",
        'a 1 # {b="c"} 1',
        "a 1e",
        'a{b="\xff"} 1',
        "a b\tc#d",
        "9a 1",
    ],
    ids=str,
)
def test_an_invalid_line_drops_its_family(line: str) -> None:
    families, invalid = read(f"# TYPE a gauge\na 1\n{line}\n# TYPE z gauge\nz 1\n".encode("latin-1"))
    assert invalid
    assert (b"z", b"gauge", b"z 1\n") in families


@pytest.mark.parametrize(
    "line", ["a 1 1.5", 'a 1 # {b="c"} 1', "a 1 2 # {} 1e-5 1.5", "a +Inf", "a -.5e-7", "a 1."], ids=str
)
def test_openmetrics(line: str) -> None:
    reader = ExpositionReader(checks=True, is_openmetrics=True)
    assert [piece.samples for piece in reader.feed(f"{line}\n".encode())] == [f"{line}\n".encode()]
    reader = ExpositionReader(checks=True, is_openmetrics=True)
    assert not list(reader.feed(b'a 1 # {b="c"\n'))


@pytest.mark.parametrize("comment", ["# TYPE a sundry", "# UNIT a seconds", "# TYPE a", "# HELP a \xff", "#"])
def test_an_invalid_comment_is_dropped(comment: str) -> None:
    reader = ExpositionReader(checks=True)
    (piece,) = reader.feed(f"{comment}\na 1\n".encode("latin-1"))
    assert (piece.family.header(), piece.samples) == (b"", b"a 1\n")


def test_an_invalid_line_in_a_later_part_drops_the_family() -> None:
    families, invalid = read(b"# TYPE a gauge\na 1\n", b"a one two three\n", b"a 2\n")
    assert (families, invalid) == ([], {b"a"})


def test_an_endless_line() -> None:
    reader = ExpositionReader(checks=False)
    for _ in range(LONGEST_LINE // 1000):
        assert not list(reader.feed(b"x" * 1000))
    with pytest.raises(LineTooLong):
        list(reader.feed(b"x" * 1000))


def test_large_input_is_split_into_slices() -> None:
    lines = b"".join(b'a{b="%d"} 1\n' % number for number in range(40_000))
    pieces = list(ExpositionReader(checks=True).feed(b"# TYPE a gauge\n" + lines))
    assert max(len(piece.samples) for piece in pieces) <= 2 * SLICE
    assert b"".join(piece.samples for piece in pieces) == lines


def test_windows_line_endings() -> None:
    families, _ = read(b"# TYPE a gauge\r\na 1\r\n\r\n\r\nb 2")
    assert [(name, samples) for name, _, samples in families] == [(b"a", b"a 1\n"), (b"b", b"b 2\n")]


def test_quoted_names() -> None:
    families, invalid = read(b'# TYPE "a.b" counter\n{"a.b",x="y"} 1\n')
    assert not invalid
    assert [name for name, _, _ in families] == [b'"a.b"']
