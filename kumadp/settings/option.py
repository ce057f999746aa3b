"""The declaration of an option. `kumadp.settings.model` declares each one exactly once; the rest is derived from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from kumadp.settings.values import Kind

Command = Literal["run", "wait"]
OWN = "KUMADP_"
declared: list[dict[str, Any]] = []
"""The declarations, in the order of the fields of `kumadp.settings.model.Settings`."""
_PLACEHOLDERS = {"texts": "TEXT", "pairs": "NAME=VALUE", "integers": "N,N"}


class Option(Struct, frozen=True):
    """One setting: its names, meaning and permitted values.

    ``flags`` and ``variables`` hold the current name first, then aliases; the variable is `own_variable` if Kuma has
    none. ``key`` is its path in a settings file, or empty. A default of None is shown as ``none_means``. An option that
    is not ``effective`` is accepted for compatibility with kuma-dp, but ignored. ``reload``: a reload applies a new
    value; other options need a restart. ``only_kuma_2``: it has no effect with a control plane of Kuma 3.
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
    only_kuma_2: bool
    struct: str
    metavar: str

    @property
    def placeholder(self) -> str:
        """The placeholder of the value in ``--help``: the choices, a word such as ``PATH``, or the kind of value."""
        if self.choices:
            return f"[{'|'.join(filter(None, self.choices))}]"
        return self.metavar or _PLACEHOLDERS.get(self.kind, self.kind.upper())

    @property
    def name(self) -> str:
        """The name in messages if the user has not given it: its flag, else its variable."""
        return (*self.flags, *self.variables)[0]

    @property
    def meaning(self) -> str:
        """The help text with the choices, and a note if the option has no effect."""
        choices = f" One of: {', '.join(filter(None, self.choices))}." if self.choices else ""
        return self._described + choices

    @property
    def _described(self) -> str:
        if not self.effective:
            return f"{self.help} (accepted, but without effect)"
        return f"{self.help} Without effect with Kuma 3." if self.only_kuma_2 else self.help

    @property
    def help_text(self) -> str:
        """The help text with variables, default and reload mark, as shown by ``--help``."""
        end = f"(default: {self.default_text})" + self.reload_mark
        if not self.flags:
            return f"{self.meaning} {end}"
        # The choices are shown next to the flag.
        return f"{self._described} [{', '.join(self.variables)}] {end}"

    @property
    def reload_mark(self) -> str:
        """The mark of an option whose new value a reload applies, after its help text; empty for others."""
        return " (reload)" if self.reload else ""

    @property
    def read_variables(self) -> tuple[str, ...]:
        """All variables that are read, in order of precedence.

        kuma-dp's envconfig also reads a name that has the path of the field in its structure in front of the variable,
        and reads that name first (envconfig 1.4: gatherInfo, Process).
        """
        kuma = [name for name in self.variables if name.startswith("KUMA_")]
        return (*(f"{self.struct}_{name}" for name in kuma), *self.variables)

    @property
    def default_text(self) -> str:
        """The default as a user would write it."""
        from kumadp.settings.values import write_value

        return self.none_means if self.default is None else write_value(self.kind, self.default) or '""'


def own_variable(flag: str) -> str:
    """Return the variable of an option for which Kuma has none: ``KUMADP_XDS_RELAY`` for ``--xds-relay``."""
    return OWN + flag.lstrip("-").replace("-", "_").upper()


def option(
    kind: Kind,
    default: object,
    help: str,  # noqa: A002 - the common word
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
    only_kuma_2: bool = False,
    struct: str = "",
    metavar: str = "",
) -> Any:
    """Declare a setting as a field of `kumadp.settings.model.Settings`.

    ``reload``: whether a reload applies a new value. ``env``: its variables; by default `own_variable`. ``struct``: its
    path in kuma-dp's structure, if it differs from ``key``. ``metavar``: placeholder of the value in ``--help``.
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
        "only_kuma_2": only_kuma_2,
        "struct": struct or key.rpartition(".")[0].replace(".", "_").upper(),
        "metavar": metavar,
    }
    declared.append(spec)
    return default
