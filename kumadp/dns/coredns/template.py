"""The subset of Go's text/template that Corefile templates of Kuma use: fields, if, else and end."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.errors import Problem, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A dash trims only with a space between it and the action (Go: text/template, "Text and spaces").
_OPEN, _CLOSE = "{{", "}}"
_COMMENT = re.compile(r"(?:-\s)?\s*+/\*")
_CONDITION = re.compile(r"(not\s+)?\.(\w+)")
_HINT = "use .Field, if, else, end"
# Limits of a template in characters, of its actions, and of the problems that are reported.
_LARGEST = 1 << 20
_MOST_ACTIONS = 20_000
_MOST_PROBLEMS = 20
_LONGEST_SHOWN = 100


class Rendered(Struct, frozen=True):
    """A text, with the offset and the line in the template of each of its parts."""

    text: str
    _starts: tuple[int, ...]
    _lines: tuple[int, ...]

    def line_in_template(self, line: int) -> int:
        """Return the line of the template that line ``line`` of the text comes from; both count from 1."""
        offset = 0
        for _ in range(line - 1):
            end = self.text.find("\n", offset)
            if end < 0:
                break
            offset = end + 1
        # The line may start with the indentation of a part that began above: its first other character counts.
        while offset < len(self.text) - 1 and self.text[offset] in " \t":
            offset += 1
        part = bisect_right(self._starts, offset) - 1
        if part < 0:
            return line
        return self._lines[part] + self.text.count("\n", self._starts[part], offset)


class _Branch(Struct):
    line: int
    shown: bool
    taken: bool
    outer: bool = True
    has_else: bool = False

    @property
    def is_reached(self) -> bool:
        """Whether it and all branches around it are rendered."""
        return self.shown and self.outer


class _Output(Struct):
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
    """Render ``{{ .Field }}`` and ``{{ if .Field }} ... {{ else }} ... {{ end }}`` (also ``if not``, ``else if``).

    ``source`` names the template. Raises SettingsError with the line of each action that is not supported.
    """
    output = _Output()
    branches: list[_Branch] = []
    problems: list[Problem] = []
    line, trim = 1, False

    def report(message: str, line: int) -> None:
        problems.append(Problem("Corefile template", message, _HINT, source, line))

    for text, action in _parts(template):
        _add_text(text, line, output, branches, trim_left=trim, trim_right=action is not None and action.trims_before)
        line += text.count("\n")
        if action is None:
            break
        trim = action.trims_after
        if problem := "a {{ has no }}" if action.is_open else _apply(action.text, variables, branches, output, line):
            report(problem, line)
        line += action.newlines
        if len(problems) >= _MOST_PROBLEMS:
            raise SettingsError(problems)
    for branch in branches[:_MOST_PROBLEMS]:
        report("an {{ if }} has no {{ end }}", branch.line)
    if problems:
        raise SettingsError(problems)
    return output.rendered()


class _Action(Struct, frozen=True):
    """The text between ``{{`` and ``}}``; ``is_open``: the end is missing."""

    text: str
    newlines: int
    trims_before: bool = False
    trims_after: bool = False
    is_open: bool = False


def _parts(template: str) -> Iterator[tuple[str, _Action | None]]:
    """Yield each text with the action behind it, None for the last text, in linear time."""
    at = count = 0
    while (start := template.find(_OPEN, at)) >= 0:
        count += 1
        inside = start + len(_OPEN)
        comment = _COMMENT.match(template, inside)
        after = template.find("*/", comment.end()) if comment is not None else inside
        end = template.find(_CLOSE, after) if after >= 0 else -1
        if end < 0 or count > _MOST_ACTIONS or len(template) > _LARGEST:
            yield template[at:start], _Action("", 0, is_open=True)
            return
        text = template[inside:end]
        before = text[:1] == "-" and text[1:2].isspace()
        behind = text[-1:] == "-" and text[-2:-1].isspace()
        shown = text[1 if before else 0 : len(text) - 1 if behind else None].strip()
        yield template[at:start], _Action(shown, text.count("\n"), before, behind)
        at = end + len(_CLOSE)
    yield template[at:], None


def _add_text(
    text: str, line: int, output: _Output, branches: list[_Branch], *, trim_left: bool, trim_right: bool
) -> None:
    if trim_left:
        trimmed = text.lstrip()
        line += text.count("\n", 0, len(text) - len(trimmed))
        text = trimmed
    if trim_right:
        text = text.rstrip()
    if _is_shown(branches):
        output.add(text, line)


def _is_shown(branches: list[_Branch]) -> bool:
    """Return whether text in these branches is rendered."""
    return not branches or branches[-1].is_reached


def _apply(action: str, variables: Mapping[str, object], branches: list[_Branch], output: _Output, line: int) -> str:
    """Apply an action and return what is wrong with it, empty if nothing is."""
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
        # Even with a wrong condition, it has its branches and its end.
        branches.append(_Branch(line, bool(value), bool(value), _is_shown(branches)))
        return f"{{{{ {action[:_LONGEST_SHOWN]} }}}} is not supported" if value is None else ""
    elif action.startswith(".") and action[1:] in variables:
        if _is_shown(branches):
            variable = variables[action[1:]]
            output.add(str(variable).lower() if isinstance(variable, bool) else str(variable), line)
    else:
        return f"{{{{ {action[:_LONGEST_SHOWN]} }}}} is not supported"
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
    return f"{{{{ else {rest[:_LONGEST_SHOWN]} }}}} is not supported" if value is None else ""


def _condition(text: str, variables: Mapping[str, object]) -> bool | None:
    """Return Go's truth of a field, as in Python; None if this is not one of the variables."""
    match = _CONDITION.fullmatch(text)
    if match is None or match[2] not in variables:
        return None
    return bool(variables[match[2]]) is not bool(match[1])
