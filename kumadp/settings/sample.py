"""The commented sample ``configs/kumadp.yaml``, generated from the options by ``python -m kumadp.settings.sample``."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

from kumadp.settings.model import options

if TYPE_CHECKING:
    from kumadp.settings.option import Option

HEADER = """\
# Settings of `kumadp run --config FILE`: every key with its default, and the flag and variable of the same option.
# To set a key, remove the # directly in front of it. Precedence: flag, then variable, then this file, then the default.
# Options marked (reload) are applied by a reload; all others need a restart of kumadp.
# Durations are written as in Go: 1m30s, 500ms. Lists are YAML lists; a,b works too.
"""
Tree = dict[str, "Option | Tree"]


def sample() -> str:
    """Return the text of the sample file."""
    tree: Tree = {}
    for option in options():
        if option.key:
            *parents, last = option.key.split(".")
            branch = tree
            for part in parents:
                below = branch.setdefault(part, {})
                assert isinstance(below, dict)  # noqa: S101 - no key is also the beginning of another
                branch = below
            branch[last] = option
    return HEADER + "".join(f"{line}\n" for line in _write(tree, 0))


def _write(tree: Tree, depth: int) -> list[str]:
    """Return the lines of a mapping: first its settings, then the mappings in it."""
    indent = "  " * depth
    lines: list[str] = []
    for name, option in tree.items():
        if not isinstance(option, dict):
            comment = f"{option.meaning} [{', '.join((*option.flags, *option.variables))}]{option.reload_mark}"
            prose = f"{indent}# "
            lines += textwrap.wrap(
                comment,
                118,
                initial_indent=prose,
                subsequent_indent=prose,
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines.append(f"{indent}#{name}: {_yaml(option)}")
    for name, below in tree.items():
        if isinstance(below, dict):
            lines += ["", f"{indent}{name}:", *_write(below, depth + 1)]
    return lines


def _yaml(option: Option) -> str:
    if option.secret:
        return '""  # prefer a file: see tokenPath'
    if option.default is None:
        return f"null  # {option.none_means}"
    if option.kind in {"texts", "integers"}:
        return "[]"
    if option.kind == "pairs":
        return "{}"
    return option.default_text


if __name__ == "__main__":
    sys.stdout.write(sample())
