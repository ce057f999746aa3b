"""The commented sample ``configs/kumadp.yaml``, made from the options: ``python -m kumadp.settings.sample``."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

from kumadp.settings.model import options

if TYPE_CHECKING:
    from kumadp.settings.option import Option

HEADER = """\
# Settings of `kumadp run --config FILE`. Every key, with its default; take out the # of what you change.
# Order: flag, then variable, then this file, then the default. Durations are Go's: 1m30s, 500ms.
"""


def sample() -> str:
    """The whole file."""
    tree: dict[str, list[Option]] = {}
    for option in options():
        if option.key and not option.key.startswith("wait."):
            tree.setdefault(option.key.rpartition(".")[0], []).append(option)
    lines = [HEADER]
    for parent, members in tree.items():
        lines.append("")
        depth = 0
        for part in parent.split("."):
            lines.append(f"#{'  ' * depth}{part}:")
            depth += 1
        for option in members:
            indent = "#" + "  " * depth
            names = ", ".join((*option.flags, *option.variables))
            lines.extend(
                textwrap.wrap(
                    f"{option.help} [{names}]", 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
                )
            )
            lines.append(f"{indent}{option.key.rpartition('.')[2]}: {_yaml(option)}")
    return "\n".join(lines) + "\n"


def _yaml(option: Option) -> str:
    if option.secret:
        return '""  # better a file: see tokenPath'
    if option.default is None:
        return f"null  # {option.none_means}"
    if option.kind in {"texts", "integers"}:
        return "[]"
    if option.kind == "pairs":
        return "{}"
    return option.default_text


if __name__ == "__main__":
    sys.stdout.write(sample())
