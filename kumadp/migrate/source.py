"""A kuma-dp to be replaced, and its options as they were given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from kumadp.settings.model import options_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kumadp.settings.option import Option


class KumaDp(Struct, frozen=True):
    """A kuma-dp as it runs, or as a unit or a compose file starts it.

    ``origin`` names where it was found. ``arguments`` follow its program; relative paths in them are relative to
    ``folder``. ``unit`` is the unit of systemd that starts it, ``pids`` are its process and those below it; each may be
    empty. ``version`` is empty if it is not known.
    """

    origin: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    folder: Path = Path("/")
    user: str = ""
    group: str = ""
    program: str = "kuma-dp"
    unit: str = ""
    version: str = ""
    pids: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    service: str = ""
    """Its service in a compose file; such a kuma-dp runs in a container."""


class GivenOption(Struct, frozen=True):
    """An option as it was given: ``text`` is its value, None for a boolean flag alone.

    ``option`` is that of kumadp with this name, None if there is none.
    """

    name: str
    source: Literal["flag", "variable"]
    text: str | None
    option: Option | None


def flags_of(arguments: Sequence[str]) -> list[GivenOption]:
    """Parse the arguments of a kuma-dp as pflag does, which it uses: ``--a b``, ``--a=b``, ``-d b``, ``-db``."""
    by_flag = {flag: option for option in options_of("run") for flag in option.flags}
    words, given = list(arguments), []
    while words:
        word = words.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            continue
        name, equals, text = word.partition("=")
        if not word.startswith("--") and len(word) > 2:
            name, equals, text = word[:2], "=", word[2:].removeprefix("=")
        option = by_flag.get(name)
        value: str | None = text
        if not equals:
            takes = option.kind != "boolean" if option is not None else bool(words) and not words[0].startswith("-")
            value = words.pop(0) if takes and words and words[0] != "run" else None
        given.append(GivenOption(name, "flag", value, option))
    return given


def variables_of(environ: Mapping[str, str]) -> list[GivenOption]:
    """Return the variables that kuma-dp reads and that are set; those of Kuma that it does not know, too."""
    by_variable: dict[str, Option] = {}
    for option in options_of("run"):
        for name in option.read_variables:
            if not name.startswith("KUMADP_"):
                by_variable[name] = option
    return [
        GivenOption(name, "variable", text, by_variable.get(name))
        for name, text in sorted(environ.items())
        if text and (name in by_variable or name.startswith("KUMA_"))
    ]


def effective(flags: Sequence[GivenOption], variables: Sequence[GivenOption]) -> dict[str, list[GivenOption]]:
    """Return what kuma-dp uses by field: a variable takes precedence over a flag, the last flag over others.

    Of variables the one with the path of its structure in front comes first (envconfig); only lists have several.
    """
    chosen: dict[str, list[GivenOption]] = {}
    for given in flags:
        if given.option is not None:
            repeats = given.option.kind in {"texts", "pairs"}
            chosen[given.option.field] = [*(chosen.get(given.option.field, ()) if repeats else ()), given]
    for field, names in _by_field(variables):
        chosen[field] = [names[0]]
    return chosen


def _by_field(variables: Sequence[GivenOption]) -> Iterator[tuple[str, list[GivenOption]]]:
    fields: dict[str, list[GivenOption]] = {}
    for given in variables:
        if given.option is not None:
            fields.setdefault(given.option.field, []).append(given)
    for field, several in fields.items():
        option = several[0].option
        order = option.read_variables if option is not None else ()
        yield field, sorted(several, key=lambda given: order.index(given.name))
