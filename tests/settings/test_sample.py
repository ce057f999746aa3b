"""The sample settings file is up to date, and all its keys are accepted."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from kumadp.settings.model import Settings, options
from kumadp.settings.resolve import resolve
from kumadp.settings.sample import sample

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {"name": "web", "mesh": "default"}
# Required options are given by flag, so that only the file differs from the defaults.
PLAIN = resolve("run", FLAGS, {}).settings


def set_everything(text: str) -> str:
    return re.sub(r"(?m)^( *)#(?! )", r"\1", text)


def test_the_sample_is_up_to_date() -> None:
    written = (ROOT / "configs/kumadp.yaml").read_text(encoding="utf-8")
    assert written == sample(), "python -m kumadp.settings.sample > configs/kumadp.yaml"


def test_the_sample_as_it_is_changes_nothing() -> None:
    assert resolve("run", FLAGS, {}, sample(), "kumadp.yaml").settings == PLAIN


def test_every_line_set_is_the_defaults() -> None:
    text = set_everything(sample())
    resolved = resolve("run", FLAGS, {}, text, "kumadp.yaml")
    assert resolved.settings == PLAIN
    assert resolved.warnings == ()


def test_every_key_is_in_it_once_with_its_names() -> None:
    text = set_everything(sample())
    tree = yaml.safe_load(text)
    for option in options():
        if option.key:
            node = tree
            for part in option.key.split("."):
                assert part in node, option.key
                node = node[part]
            for name in (*option.flags, *option.variables):
                assert name in text


def test_a_line_that_is_set_takes_effect() -> None:
    text = sample().replace("  #drainTime: 30s", "  drainTime: 5s")
    assert resolve("run", FLAGS, {}, text, "kumadp.yaml").settings.drain_time == 5.0
    assert Settings().drain_time == 30.0
