"""The words that operators read: log lines, errors, help, status texts and documents use plain technical terms.

`AVOIDED` has the others; kumadp/README.md has the terms to use. In tests names and comments are held to it too; in
kumadp these are for reviewers to judge.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "kumadp").rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve())
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


def words_of_tests(text: str) -> Iterator[tuple[int, str]]:
    """Line and words of all names, comments, and strings of several words; a single one is a key or a value."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", token.string).replace("_", " ")
            yield token.start[0], name
            yield token.start[0], name.replace(" ", "-")
        elif token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], LABEL.sub("", token.string)


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


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_are_written_in_plain_words(path: Path) -> None:
    words = words_of_tests(path.read_text(encoding="utf-8"))
    assert [f"{line}: {text[:100]}" for line, text in words if AVOIDED.search(text)] == []


def test_the_check_of_tests_finds_them() -> None:
    code = '''
def test_who_asked_hears(told, StandIn, stand_in, for_good):
    """What it says."""  # Meanwhile.
    assert says_all["said"] == "asked for"
'''
    words = [word for _, text in words_of_tests(code) for word in AVOIDED.findall(text)]
    assert set(words) == {
        *("asked", "hears", "told", "Stand-In", "stand-in", "for good", "says", "Meanwhile"),
    }
    assert words.count("asked") == 3  # The name in two forms, and the string.


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
