"""The part of Go's text/template that Corefile templates of Kuma use: fields, if, else and end."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kumadp.errors import Problem, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A dash trims only with a space between it and the action (Go: text/template, "Text and spaces").
_ACTION = re.compile(r"\{\{(?:(-)\s)?\s*(/\*.*?\*/|.*?)\s*?(?:\s(-))?\}\}", re.DOTALL)
_OPEN = re.compile(r"\{\{")
_CONDITION = re.compile(r"(not\s+)?\.(\w+)")
_HINT = "use .Field, if, else, end"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, and where each part of it comes from: offsets in it, and lines of the template."""

    text: str
    _starts: tuple[int, ...]
    _lines: tuple[int, ...]

    def line_in_template(self, line: int) -> int:
        """The line of the template that line ``line`` of the text is of; both count from 1."""
        offset = 0
        for _ in range(line - 1):
            end = self.text.find("\n", offset)
            if end < 0:
                break
            offset = end + 1
        # What stands first on the line may be the end of a part that began above: the line's own text counts.
        while offset < len(self.text) - 1 and self.text[offset] in " \t":
            offset += 1
        part = bisect_right(self._starts, offset) - 1
        if part < 0:
            return line
        return self._lines[part] + self.text.count("\n", self._starts[part], offset)


@dataclass(slots=True)
class _Branch:
    line: int
    shown: bool
    taken: bool
    has_else: bool = False


@dataclass(slots=True)
class _Output:
    parts: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    length: int = 0

    def add(self, text: str, line: int) -> None:
        if text:
            self.parts.append(text)
            self.starts.append(self.length)
            self.lines.append(line)
            self.length += len(text)

    def rendered(self) -> Rendered:
        return Rendered("".join(self.parts), tuple(self.starts), tuple(self.lines))


def render(template: str, variables: Mapping[str, object], source: str) -> Rendered:
    """Fill in ``{{ .Field }}`` and ``{{ if .Field }} ... {{ else }} ... {{ end }}`` (also ``if not``, ``else if``).

    ``source`` names the template. Raises SettingsError with every place where it uses anything else, by its line.
    """
    output = _Output()
    branches: list[_Branch] = []
    problems: list[Problem] = []
    position, trim = 0, False

    def tell(message: str, line: int) -> None:
        problems.append(Problem("Corefile template", message, _HINT, source, line))

    def line_at(offset: int) -> int:
        return template.count("\n", 0, offset) + 1

    for match in _ACTION.finditer(template):
        _add_text(template, position, match.start(), output, branches, trim_left=trim, trim_right=bool(match[1]))
        position, trim = match.end(), bool(match[3])
        line = line_at(match.start())
        if wrong := _act(match[2], variables, branches, output, line):
            tell(wrong, line)
    if stray := _OPEN.search(template, position):
        tell("a {{ has no }}", line_at(stray.start()))
    _add_text(template, position, len(template), output, branches, trim_left=trim, trim_right=False)
    for branch in branches:
        tell("an {{ if }} has no {{ end }}", branch.line)
    if problems:
        raise SettingsError(problems)
    return output.rendered()


def _add_text(
    template: str,
    start: int,
    end: int,
    output: _Output,
    branches: list[_Branch],
    *,
    trim_left: bool,
    trim_right: bool,
) -> None:
    text = template[start:end]
    if trim_left:
        kept = text.lstrip()
        start += len(text) - len(kept)
        text = kept
    if trim_right:
        text = text.rstrip()
    if all(branch.shown for branch in branches):
        output.add(text, template.count("\n", 0, start) + 1)


def _act(action: str, variables: Mapping[str, object], branches: list[_Branch], output: _Output, line: int) -> str:
    """Do what one action says; what is wrong with it, or nothing."""
    word, _, rest = action.partition(" ")
    rest = rest.strip()
    if action.startswith("/*"):
        return ""
    if action == "end":
        if not branches:
            return "{{ end }} has no {{ if }}"
        branches.pop()
    elif word == "else":
        return _else(rest, variables, branches)
    elif word == "if":
        value = _condition(rest, variables)
        # Its branches and its end belong to it also where its condition is wrong.
        branches.append(_Branch(line, bool(value), bool(value)))
        return f"{{{{ {action} }}}} is not understood" if value is None else ""
    elif action.startswith(".") and action[1:] in variables:
        if all(branch.shown for branch in branches):
            known = variables[action[1:]]
            output.add(str(known).lower() if isinstance(known, bool) else str(known), line)
    else:
        return f"{{{{ {action} }}}} is not understood"
    return ""


def _else(rest: str, variables: Mapping[str, object], branches: list[_Branch]) -> str:
    if not branches or branches[-1].has_else:
        return "{{ else }} has no {{ if }}"
    branch = branches[-1]
    word, _, condition = rest.partition(" ")
    if not rest:
        branch.has_else = True
        value: bool | None = True
    else:
        value = _condition(condition.strip(), variables) if word == "if" else None
    branch.shown = bool(value) and not branch.taken
    branch.taken = branch.taken or branch.shown
    return f"{{{{ else {rest} }}}} is not understood" if value is None else ""


def _condition(text: str, variables: Mapping[str, object]) -> bool | None:
    """Go's truth of a field: false, 0 and the empty text are not; None where this is no field of ours."""
    match = _CONDITION.fullmatch(text)
    if match is None or match[2] not in variables:
        return None
    return bool(variables[match[2]]) is not bool(match[1])
