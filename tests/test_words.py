"""The words that operators read: log lines, errors, help, status texts and documents use plain technical terms.

`AVOIDED` has the others; kumadp/README.md has the terms to use. Names and comments are for reviewers to judge.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "kumadp").rglob("*.py"))
DOCUMENTS = sorted(
    path
    for pattern in (
        *("README.md", "CHANGELOG.md", "*/README.md", "Dockerfile", "Makefile", "systemd/*"),
        *("configs/**/*.yaml", "configs/*.json"),
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)
AVOIDED = re.compile(
    r"\b(told|tells?|says?|said|asks?|asked|hears?|heard|worry|worries|stand-ins?|meanwhile|patience|anew|outward"
    r"|gone on with|goes on with|for good|as far as|for want of|of its own)\b",
    re.IGNORECASE,
)
# The value of a metric's label, which is a public interface.
LABEL = re.compile(r'reason!?="asked"')


def is_command(node: ast.AST) -> bool:
    """Whether it is the function of a click command, whose docstring is its help."""
    decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ())]
    return any("command" in text or "group" in text for text in decorators)


def shown_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of all strings of a module that people may read: those of several words, no docstrings."""
    help_texts = {node.body[0] for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and is_command(node)}
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and node not in help_texts]
    docstrings = {statement.value for statement in statements}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            text = node.value.strip()
            # A piece of an f-string, or a whole text; a single word in quotes is a key or a value.
            if " " in text or node.value != text:
                yield node.lineno, text


def avoided_in(path: Path) -> list[str]:
    """The lines with such words."""
    text = path.read_text(encoding="utf-8")
    shown = shown_texts(ast.parse(text)) if path.suffix == ".py" else enumerate(text.splitlines(), 1)
    lines = {(line, LABEL.sub("", text)) for line, text in shown}
    name = path.relative_to(ROOT)
    return [f"{name}:{line}: {text.strip()[:100]}" for line, text in sorted(lines) if AVOIDED.search(text)]


@pytest.mark.parametrize("path", [*MODULES, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_operators_read_plain_words(path: Path) -> None:
    assert avoided_in(path) == []


def test_the_check_finds_them() -> None:
    code = '''
"""A module that says something."""
log.warning("it was asked for %s", name)
status.set_not_ready("envoy", f"{name} is told later")
raise KumadpError(f"{name}: gone for good: {reason}")
answer["said"] = "key" + f"{what} tells"
@click.option("--x", help="What to ask.")
@click.command()
def command() -> None:
    """Say it anew."""
def other() -> None:
    """Whoever asks."""
    """Says more about a field."""
'''
    shown = [AVOIDED.findall(text) for _, text in shown_texts(ast.parse(code))]
    assert sorted(word for words in shown for word in words) == [
        *("Say", "anew", "ask", "asked", "for good", "tells", "told"),
    ]
