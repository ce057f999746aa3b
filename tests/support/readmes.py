"""The READMEs of the project: their texts, code blocks, tables, headings and links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("README.md", "configs/README.md", "kumadp/README.md", "systemd/README.md", "tests/README.md")


def text_of(name: str) -> str:
    """The text of one README, named by its path in the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """Each fenced code block of a README: what follows its opening backticks, and its content."""
    return re.findall(r"^```(.*)\n((?s:.*?))^```$", text_of(name), re.MULTILINE)


def one_block(kind: str) -> str:
    """The content of the only block of this kind (as ``sh systemd``) in all READMEs."""
    (content,) = [content for name in NAMES for shown, content in blocks(name) if shown == kind]
    return content


def lines_of(block: str) -> list[str]:
    """The commands of a shell block: one for each line that does not end in a backslash."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def commands(name: str) -> list[str]:
    """Each command of the ``sh`` blocks of a README, in order."""
    return [line for kind, content in blocks(name) if kind == "sh" for line in lines_of(content)]


def make_targets(name: str) -> list[str]:
    """Each target of ``make`` that a README names, in blocks and in the text."""
    return re.findall(r"(?:^|`)make ([\w-]+)", text_of(name), re.MULTILINE)


def files() -> dict[str, str]:
    """The content of each block that begins with a file name, such as ``# dataplane.yaml``, by that name."""
    named = {}
    for name in NAMES:
        for kind, content in blocks(name):
            if kind in {"yaml", "dockerfile"}:
                heading, _, rest = content.partition("\n")
                named[heading.removeprefix("# ")] = rest
    return named


def output_of(command: str) -> str:
    """What a README shows as the output of this command: the ``text`` block that follows it."""
    shown = [
        following[1]
        for name in NAMES
        for block, following in zip(blocks(name), blocks(name)[1:], strict=False)
        if block[0] == "sh" and following[0] == "text" and lines_of(block[1])[-1:] == [command]
    ]
    (output,) = shown
    return output


def rows_after(mark: str) -> list[list[str]]:
    """Cells of the table that follows ``<!-- mark -->`` in some README, without its heading."""
    (text,) = [text for text in map(text_of, NAMES) if f"<!-- {mark} -->\n" in text]
    lines = text.split(f"<!-- {mark} -->\n", 1)[1].splitlines()
    table = lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


def anchors(text: str) -> set[str]:
    """The anchors of a text's headings, as GitHub makes them of the words."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(name: str) -> list[str]:
    """The targets of all links of a README."""
    prose = re.sub(r"^```.*?^```$", "", text_of(name), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)
