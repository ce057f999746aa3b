"""YAML from outside cannot blow anything up, and what is harmless is read by the rules of YAML."""

from __future__ import annotations

import pytest
import yaml

from kumadp import yamltext
from kumadp.yamltext import Bounds

BOUNDS = Bounds(size=100_000, depth=20, nodes=1_000)


def laughs(levels: int, width: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


BAD = {
    "too large": ("a: " + "x" * 200_000, "larger than"),
    "too deep": ("[" * 21 + "]" * 21, "nested deeper than 20"),
    "so deep that a composer would die": ("[" * 90_000, "nested deeper than 20"),
    "too deep by mappings": ("".join(f"{' ' * n}a:\n" for n in range(30)), "nested deeper than 20"),
    "too deep by aliases": ("\n".join(["a0: &a0 []", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 30))]), "deeper"),
    "too many": ("[" + "x," * 2_000 + "]", "more than 1000 values"),
    "a billion laughs": (laughs(9, 10), "more than 1000 values"),
    "an alias of itself": ("a: &a [*a]", "part of"),
    "an alias of nothing": ("a: *b", "stands for nothing"),
    "several documents": ("a: 1\n---\nb: 2", "more than one document"),
    "a tab": ("a:\n\t- b", "cannot start any token"),
    "not closed": ("a: [b", "did not find expected"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [yamltext.compose, yamltext.load])
def test_what_is_bad_is_one_line_with_its_place(name: str, read: object) -> None:
    text, reported = BAD[name]
    assert callable(read)
    with pytest.raises(yaml.YAMLError) as bad:
        read(text, BOUNDS)
    assert reported in yamltext.reason(bad.value)
    assert len(yamltext.reason(bad.value).splitlines()) == 1
    if name not in {"too large"}:
        assert yamltext.line(bad.value) >= 1


@pytest.mark.parametrize(
    "value",
    [
        "!!bool maybe",
        '!!int ""',
        "!!int +",
        '!!int "0b2"',
        "!!float q",
        "!!float _",
        "9" * 5000,
        "!!int 0x" + "f" * 5000,
    ],
)
def test_a_value_that_does_not_fit_its_tag_has_a_place(value: str) -> None:
    with pytest.raises(yaml.YAMLError) as bad:
        yamltext.load(f"a: 1\nb:\n- {value}\n", BOUNDS)
    assert yamltext.line(bad.value) == 3


@pytest.mark.parametrize("read", [yamltext.compose, yamltext.load])
def test_half_of_a_surrogate_pair_is_no_text(read: object) -> None:
    assert callable(read)
    with pytest.raises(yaml.YAMLError, match="not UTF-8"):
        read("a: \ud800", BOUNDS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Not in base 60, as Go's YAML: and their value would cost the square of their length.
        ("1:20", "1:20"),
        ("1:20:30.5", "1:20:30.5"),
        ("", None),
        ("---\na: 1\n", {"a": 1}),
        ('{"a": [1, "b", null, true]}', {"a": [1, "b", None, True]}),
        ("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        (laughs(2, 5), {"a0": ["x"] * 5, "a1": [["x"] * 5] * 5}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_what_is_harmless_is_read(text: str, value: object) -> None:
    assert yamltext.load(text, BOUNDS) == value


def test_what_json_could_not_carry_on_stays_text_or_is_refused() -> None:
    read = yamltext.load("{a: 2026-11-25, b: 2026-11-25T01:02:03Z, c: =, d: 1.5, e: .5, f: yes, 1: x}", BOUNDS)
    assert read == {"a": "2026-11-25", "b": "2026-11-25T01:02:03Z", "c": "=", "d": 1.5, "e": 0.5, "f": True, 1: "x"}
    for text in ("a: .nan", "a: -.inf", "a: !!binary aGk=", "a: !!set {b}", "a: !!timestamp 2026-11-25", "a: !own x"):
        with pytest.raises(yaml.YAMLError) as bad:
            yamltext.load(text, BOUNDS)
        assert yamltext.line(bad.value) == 1


def test_merge_keys_give_way_to_own_keys() -> None:
    root = yamltext.compose("base: &b {x: 1, y: 2}\nmore: &m {z: 3, y: 9}\nmade: {<<: [*b, *m], x: 7}", BOUNDS)
    assert isinstance(root, yaml.MappingNode)
    created = root.value[2][1]
    assert isinstance(created, yaml.MappingNode)
    assert {str(key.value): value.value for key, value in yamltext.pairs(created)} == {"x": "7", "y": "2", "z": "3"}
