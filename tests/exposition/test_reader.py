"""An exposition read in parts of any size: families, pieces, what is wrong."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kumadp.exposition.reader import LONGEST_LINE, SLICE, Family, Piece, Reader, TooLong

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
    """Name, kind and samples of each family, and the names of wrong ones."""
    reader = Reader(checks=checks)
    found: list[tuple[Family, list[bytes]]] = []

    def keep(pieces: list[Piece]) -> None:
        for family, samples in pieces:
            if not found or found[-1][0] is not family:
                found.append((family, []))
            found[-1][1].append(samples)

    for part in parts:
        keep(list(reader.feed(part)))
    keep(list(reader.end()))
    told = [(family.name, family.kind, b"".join(samples)) for family, samples in found]
    return [one for one in told if one[0] not in reader.wrong], reader.wrong


def test_families_by_their_comments_and_names() -> None:
    found, wrong = read(TEXT)
    assert [(name, kind, samples.count(b"\n")) for name, kind, samples in found] == [
        (b"requests_total", b"counter", 2),
        (b"took", b"histogram", 4),
        (b"bare", b"untyped", 1),
        (b"bare_too", b"untyped", 1),
        (b"left", b"gauge", 0),
    ]
    assert not wrong


def test_comments_are_kept_with_their_family() -> None:
    family = next(iter(Reader(checks=False).feed(TEXT))).family
    assert family.header() == b"# HELP requests_total Requests.\n# TYPE requests_total counter\n"


@settings(deadline=None)
@given(st.lists(st.integers(1, len(TEXT)), max_size=8))
def test_in_parts_of_any_size(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    assert read(*(TEXT[a:b] for a, b in itertools.pairwise(edges))) == read(TEXT)


NAME = st.sampled_from(["a", "a_bucket", "a_sum", "a_total", "ab", "b:c"])
VALUE = st.sampled_from(["1", "-2.5e+06", "NaN", "+Inf"])
LABELS = st.one_of(
    st.just(""),
    st.dictionaries(st.sampled_from(["le", "x", "envoy_cluster_name"]), st.text(max_size=5), min_size=1).map(
        lambda found: "{" + ",".join(f'{name}="{escape(text)}"' for name, text in found.items()) + "}"
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
def test_no_sample_is_lost_or_made(lines: list[str], size: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    found, wrong = read(*(data[at : at + size] for at in range(0, len(data), size)))
    assert not wrong
    samples = [line for line in data.split(b"\n") if line and not line.startswith(b"#")]
    assert [line for _, _, block in found for line in block.splitlines()] == b"\n".join(samples).splitlines()


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_whatever_comes(data: bytes, size: int) -> None:
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
def test_a_wrong_line_costs_its_family(line: str) -> None:
    found, wrong = read(f"# TYPE a gauge\na 1\n{line}\n# TYPE z gauge\nz 1\n".encode("latin-1"))
    assert wrong
    assert (b"z", b"gauge", b"z 1\n") in found


@pytest.mark.parametrize(
    "line", ["a 1 1.5", 'a 1 # {b="c"} 1', "a 1 2 # {} 1e-5 1.5", "a +Inf", "a -.5e-7", "a 1."], ids=str
)
def test_what_openmetrics_has(line: str) -> None:
    reader = Reader(checks=True, is_open=True)
    assert [piece.samples for piece in reader.feed(f"{line}\n".encode())] == [f"{line}\n".encode()]
    reader = Reader(checks=True, is_open=True)
    assert not list(reader.feed(b'a 1 # {b="c"\n'))


@pytest.mark.parametrize("comment", ["# TYPE a sundry", "# UNIT a seconds", "# TYPE a", "# HELP a \xff", "#"])
def test_a_wrong_comment_is_left_out(comment: str) -> None:
    reader = Reader(checks=True)
    (piece,) = reader.feed(f"{comment}\na 1\n".encode("latin-1"))
    assert (piece.family.header(), piece.samples) == (b"", b"a 1\n")


def test_what_is_wrong_in_a_later_part_costs_the_family_too() -> None:
    found, wrong = read(b"# TYPE a gauge\na 1\n", b"a one two three\n", b"a 2\n")
    assert (found, wrong) == ([], {b"a"})


def test_a_line_without_an_end() -> None:
    reader = Reader(checks=False)
    for _ in range(LONGEST_LINE // 1000):
        assert not list(reader.feed(b"x" * 1000))
    with pytest.raises(TooLong):
        list(reader.feed(b"x" * 1000))


def test_what_comes_at_once_is_cut_into_slices() -> None:
    lines = b"".join(b'a{b="%d"} 1\n' % number for number in range(40_000))
    pieces = list(Reader(checks=True).feed(b"# TYPE a gauge\n" + lines))
    assert max(len(piece.samples) for piece in pieces) <= 2 * SLICE
    assert b"".join(piece.samples for piece in pieces) == lines


def test_lines_end_as_they_do_on_windows() -> None:
    found, _ = read(b"# TYPE a gauge\r\na 1\r\n\r\n\r\nb 2")
    assert [(name, samples) for name, _, samples in found] == [(b"a", b"a 1\n"), (b"b", b"b 2\n")]


def test_names_in_quotes() -> None:
    found, wrong = read(b'# TYPE "a.b" counter\n{"a.b",x="y"} 1\n')
    assert not wrong
    assert [name for name, _, _ in found] == [b'"a.b"']
