"""UTF-8 names are escaped as prometheus/common escapes them."""

from __future__ import annotations

import pytest

from kumadp.exposition.names import ALLOW, escaped, escaped_samples


@pytest.mark.parametrize(
    ("name", "scheme", "expected"),
    [
        ("my.metric", "underscores", "my_metric"),
        ("my.metric", "dots", "my_dot_metric"),
        ("my_.metric", "dots", "my___dot_metric"),
        ("my.metric", "values", "U__my_2e_metric"),
        ("my_.metric", "values", "U__my___2e_metric"),
        ("9a", "underscores", "_a"),
        ("9a", "values", "U___39_a"),
        ("größe/s", "underscores", "gr__e_s"),
        ("größe/s", "values", "U__gr_f6__df_e_2f_s"),
        ("grö/s", "dots", "gr____s"),
        ("plain_name", "dots", "plain_name"),
        ("plain:name", "values", "plain:name"),
    ],
)
def test_a_name_is_escaped_as_kuma_dp_does(name: str, scheme: str, expected: str) -> None:
    assert escaped(name, scheme).decode() == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"a.b"} 1\n', "a_b 1\n"),
        ('{"a.b",x="1"} 1 1700\n', 'a_b{x="1"} 1 1700\n'),
        ('{x="1", "a.b" , "l.m"="2",} 1\n', 'a_b{x="1",l_m="2"} 1\n'),
        ('a{"l.m"="2"} 1\n', 'a{l_m="2"} 1\n'),
        ('a{x="\\"l.m\\"=,"} 1\n', 'a{x="\\"l.m\\"=,"} 1\n'),
        ('a{ x="{\\"" } 1\n', 'a{x="{\\""} 1\n'),
        ('{"plain",x="a,\\"b"} 1\n', 'plain{x="a,\\"b"} 1\n'),
        ('a{"l.m"="2",l_m="3"} 1\n', ""),
        ('{"a\\"b"} 1\n', "a_b 1\n"),
        ("a 1\n", "a 1\n"),
        ('a_total 1 # {"t.u"="x"} 1\n', "a_total 1\n"),
        ('a{x=" # {"} 1 2 # {t="1", "t.u"="x"} 1 2\n', 'a{x=" # {"} 1 2\n'),
        ('{"a.b"} 1 # {t="x", u="{\\"y\\","} 1\n', 'a_b 1 # {t="x", u="{\\"y\\","} 1\n'),
    ],
)
def test_a_line_is_escaped(line: str, expected: str) -> None:
    assert escaped_samples(line.encode(), "underscores").decode() == expected
    assert escaped_samples(line.encode(), ALLOW).decode() == line
