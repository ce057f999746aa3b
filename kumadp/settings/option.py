"""What an option is. `kumadp.settings.model` declares each one exactly once; everything else is derived from there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "integer", "boolean", "duration", "texts", "integers", "pairs"]
Command = Literal["run", "wait"]


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: how it is given, what it means, what it may be.

    ``flags`` the current name first, then aliases; ``variables`` likewise; ``key`` its path in a settings file. An
    optional value of None is shown as ``none_means``.
    """

    field: str
    kind: Kind
    default: object
    help: str
    flags: tuple[str, ...]
    variables: tuple[str, ...]
    key: str
    group: str
    commands: tuple[Command, ...]
    secret: bool
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    none_means: str
    effective: bool

    @property
    def help_text(self) -> str:
        """Help with the variable and the default, as ``--help`` and the sample file show it."""
        parts = [self.help]
        if not self.effective:
            parts.append("(accepted; no effect yet)")
        if self.choices:
            parts.append(f"One of: {', '.join(choice or repr('') for choice in self.choices)}.")
        if self.variables:
            parts.append(f"[{', '.join(self.variables)}]")
        parts.append(f"(default: {self.default_text})")
        return " ".join(parts)

    @property
    def default_text(self) -> str:
        """The default as a user would write it."""
        from kumadp.settings.values import write_value

        return self.none_means if self.default is None else write_value(self.kind, self.default) or '""'


def option(
    kind: Kind,
    default: object,
    help: str,  # noqa: A002 - the word every reader knows
    *,
    flags: tuple[str, ...] | str = (),
    env: tuple[str, ...] | str = (),
    key: str = "",
    group: str = "kumadp",
    commands: tuple[Command, ...] = ("run",),
    secret: bool = False,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    none_means: str = "none",
    effective: bool = True,
) -> Any:
    """Declare a setting as a dataclass field."""
    spec = {
        "kind": kind,
        "default": default,
        "help": help,
        "flags": (flags,) if isinstance(flags, str) else flags,
        "variables": (env,) if isinstance(env, str) else env,
        "key": key,
        "group": group,
        "commands": commands,
        "secret": secret,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "none_means": none_means,
        "effective": effective,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"option": spec})
    return dataclasses.field(default=default, metadata={"option": spec})
