"""What an option is. `kumadp.settings.model` declares each one exactly once; everything else is derived from there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "integer", "boolean", "duration", "texts", "integers", "pairs"]
Command = Literal["run", "wait"]
OWN = "KUMADP_"
_PLACEHOLDERS = {"texts": "TEXT", "pairs": "NAME=VALUE", "integers": "N,N"}


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: how it is given, what it means, what it may be.

    ``flags`` the current name first, then aliases; ``variables`` likewise, `own_variable` where Kuma has none; ``key``
    its path in a settings file, empty where it has none. An optional value of None is shown as ``none_means``. An
    option that is not ``effective`` is taken from those who come from kuma-dp, and does nothing yet. ``reload``: a
    reload applies a new value of it; any other needs a restart.
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
    reload: bool
    secret: bool
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    none_means: str
    effective: bool
    struct: str
    metavar: str

    @property
    def placeholder(self) -> str:
        """What stands for the value in ``--help``: the choices, ``PATH`` and the like, else the kind of value."""
        if self.choices:
            return f"[{'|'.join(filter(None, self.choices))}]"
        return self.metavar or _PLACEHOLDERS.get(self.kind, self.kind.upper())

    @property
    def name(self) -> str:
        """What it is called where the user has not named it: its flag, else its variable."""
        return (*self.flags, *self.variables)[0]

    @property
    def meaning(self) -> str:
        """Help, what it may be, and whether it does anything."""
        choices = f" One of: {', '.join(filter(None, self.choices))}." if self.choices else ""
        return self._described + choices

    @property
    def _described(self) -> str:
        return self.help if self.effective else f"{self.help} (accepted; no effect yet)"

    @property
    def help_text(self) -> str:
        """The meaning, with variables and default, as ``--help`` shows it."""
        end = f"(default: {self.default_text})" + self.reload_mark
        if not self.flags:
            return f"{self.meaning} {end}"
        # The choices stand beside the flag.
        return f"{self._described} [{', '.join(self.variables)}] {end}"

    @property
    def reload_mark(self) -> str:
        """The mark of an option whose new value a reload applies, after its help text; empty for others."""
        return " (reload)" if self.reload else ""

    @property
    def read_variables(self) -> tuple[str, ...]:
        """Every variable that is read, the strongest first.

        kuma-dp's envconfig also answers to the path of the field in its structure before the variable, and asks that
        name first (envconfig 1.4: gatherInfo, Process).
        """
        kuma = [name for name in self.variables if name.startswith("KUMA_")]
        return (*(f"{self.struct}_{name}" for name in kuma), *self.variables)

    @property
    def default_text(self) -> str:
        """The default as a user would write it."""
        from kumadp.settings.values import write_value

        return self.none_means if self.default is None else write_value(self.kind, self.default) or '""'


def own_variable(flag: str) -> str:
    """The variable of an option that has none of Kuma's: ``KUMADP_XDS_RELAY`` for ``--xds-relay``."""
    return OWN + flag.lstrip("-").replace("-", "_").upper()


def option(
    kind: Kind,
    default: object,
    help: str,  # noqa: A002 - the word every reader knows
    *,
    flags: tuple[str, ...] | str = (),
    env: tuple[str, ...] | str = (),
    key: str = "",
    group: str,
    reload: bool,
    commands: tuple[Command, ...] = ("run",),
    secret: bool = False,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    none_means: str = "none",
    effective: bool = True,
    struct: str = "",
    metavar: str = "",
) -> Any:
    """Declare a setting as a dataclass field; ``struct`` is kuma-dp's path to it, where ``key`` does not tell.

    ``metavar`` stands for the value in ``--help``. Without ``env`` it has the variable `own_variable`.
    """
    names = (flags,) if isinstance(flags, str) else flags
    spec = {
        "kind": kind,
        "default": default,
        "help": help,
        "flags": names,
        "variables": ((env,) if isinstance(env, str) else env) or (own_variable(names[0]),),
        "key": key,
        "group": group,
        "reload": reload,
        "commands": commands,
        "secret": secret,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "none_means": none_means,
        "effective": effective,
        "struct": struct or key.rpartition(".")[0].replace(".", "_").upper(),
        "metavar": metavar,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"option": spec})
    return dataclasses.field(default=default, metadata={"option": spec})
