"""The merge of flag, variable, settings file and default, in this order: pure, and reports all problems at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from kumadp.addresses import dialled_url
from kumadp.errors import Problem, SettingsError, on_one_line
from kumadp.settings.display import show
from kumadp.settings.given import GivenValue, parse
from kumadp.settings.model import CP, Settings, options, options_of
from kumadp.settings.option import OWN, own_variable
from kumadp.settings.values import BadValue, parse_assignments, split_addresses, write_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.settings.option import Option

_PLACEHOLDER = re.compile(r"[$(){}]")
# The name is also used for a directory and a socket.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]|\A\.")
_MAX_NAME = 253
# If both are given, the first is used (Kuma 2.8: the token takes precedence over its file).
_ALTERNATIVES = (
    ("dataplane_file", "dataplane", "a Dataplane"),
    ("ca_cert", "ca_cert_file", "a CA"),
    ("token", "token_path", "a token"),
)
# How similar a variable must be to one of ours to be reported as misspelled (difflib's ratio).
_SIMILAR = 0.85
# Options that only a control plane uses, besides those of the group "Control plane".
_FOR_CONTROL_PLANE = frozenset(
    {
        "bind_outbounds",
        "mesh",
        "metrics_cert_path",
        "metrics_key_path",
        "reuse_port_enabled",
        "spire_socket_path",
        "spire_supported",
        "strict_inbound_ports",
        "system_ca_path",
        "token",
        "token_path",
        "transparent_proxy",
        "transparent_proxy_config",
        "unified_resource_naming",
    }
)


class Resolved(Struct, frozen=True):
    """Settings, warnings to log, and the origin of each value by field name (``flag --x``, ``variable X``, ...)."""

    settings: Settings
    warnings: tuple[str, ...]
    origin: Mapping[str, str]


def resolve(
    command: str,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_text: str | None = None,
    config_source: str = "",
    typed: Mapping[str, str] | None = None,
) -> Resolved:
    """Merge flags, variables and the settings file; raises SettingsError with all problems.

    ``flags`` holds texts by field name (tuples of texts for options that may be repeated), None if not given; ``typed``
    the flag as the user wrote it, which may be an alias. Variables that are set but empty count as unset. In kuma-dp
    the variable takes precedence over the flag; here the flag does, with a warning if the two differ.
    """
    merge = _Merge(environ, typed or {})
    if config_text is not None:
        from kumadp.settings.file import read_settings

        merge.from_file = read_settings(config_text, config_source, merge.problems)
    for option in options_of(command):
        merge.add(option, flags.get(option.field))
    values = {name: entry.value for name, entry in merge.given.items()}
    _name_from_pod(values)
    _warn_of_misspelled(merge)
    if command == "run":
        _check_run(values, merge)
    if merge.problems:
        raise SettingsError(merge.problems)
    if merge.without_effect:
        merge.warnings.append(f"accepted, but without effect: {', '.join(merge.without_effect)}")
    origin = {name: merge.origin(name) for name in Settings.__struct_fields__}
    arguments: Any = values
    return Resolved(Settings(**arguments), tuple(merge.warnings), origin)


class _Merge:
    """The given values, with problems and warnings about them."""

    def __init__(self, environ: Mapping[str, str], typed: Mapping[str, str]) -> None:
        self.environ = environ
        self._typed = typed
        self.from_file: Mapping[str, GivenValue] = {}
        self.given: dict[str, GivenValue] = {}
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.without_effect: list[str] = []

    def origin(self, field: str) -> str:
        return self.given[field].origin if field in self.given else "default"

    def where(self, field: str, otherwise: str) -> str:
        """Return the name that the user typed for a setting, or ``otherwise`` if it was not given."""
        return self.given[field].where if field in self.given else otherwise

    def add(self, option: Option, flag_value: object) -> None:
        flag = self._from_flag(option, flag_value)
        variable = self._from_variable(option)
        if flag and variable and flag.value != variable.value:
            advice = "remove one of them"
            if not any(name.startswith(OWN) for name in option.variables):
                advice = f"kuma-dp would use the variable: {advice}"
            shown = show(option, variable.value)
            self.warnings.append(f"{flag.origin} takes precedence over {variable.origin}={shown}; {advice}")
        chosen = flag or variable or self.from_file.get(option.field)
        if chosen is None:
            return
        _check(option, chosen, self.problems)
        self.given[option.field] = chosen
        if not option.effective and chosen.value != option.default:
            self.without_effect.append(chosen.where)

    def _from_flag(self, option: Option, value: object) -> GivenValue | None:
        if value is None or value == ():
            return None
        origin = f"flag {self._typed.get(option.field, option.name)}"
        if not isinstance(value, tuple):
            return parse(option, str(value), origin, self.problems)
        texts = [str(text) for text in value]
        return GivenValue(self._assignments(texts, origin) if option.kind == "pairs" else tuple(texts), origin)

    def _assignments(self, texts: list[str], origin: str) -> dict[str, str]:
        pairs = {}
        for text in texts:
            try:
                pairs.update(parse_assignments(text))
            except BadValue as error:
                self.problems.append(Problem(GivenValue(None, origin).where, f"{text!r} {error}"))
        return pairs

    def _from_variable(self, option: Option) -> GivenValue | None:
        for name in option.read_variables:
            text = self.environ.get(name, "")
            if option.field == "ca_cert":
                # The text around its certificates may be in any encoding (RFC 7468, section 2).
                text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if text:
                return parse(option, text, f"variable {name}", self.problems)
        return None


def _check(option: Option, given: GivenValue, problems: list[Problem]) -> None:
    values = given.value if isinstance(given.value, tuple) else (given.value,)
    for value in values:
        shown = show(option, value)
        if "\0" in str(value):
            problems.append(Problem(given.where, "contains a NUL character", "remove it"))
        elif any("\ud800" <= letter <= "\udfff" for letter in str(value)):
            # Python's form of bytes in the command line and in variables that are not valid text (PEP 383).
            problems.append(Problem(given.where, "is not UTF-8 text", "write it as UTF-8"))
        elif option.choices and value not in option.choices:
            import difflib

            similar = difflib.get_close_matches(str(value), option.choices, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"one of {', '.join(filter(None, option.choices))}"
            problems.append(Problem(given.where, f"{shown!r} is not known", hint))
        elif value == "" and option.default and option.kind == "text":
            problems.append(Problem(given.where, "is empty", f"the default is {option.default_text}"))
        if isinstance(value, int | float) and not isinstance(value, bool):
            if option.minimum is not None and value < option.minimum:
                minimum = write_value(option.kind, option.minimum)
                problems.append(Problem(given.where, f"{shown} is too small", f"at least {minimum}"))
            if option.maximum is not None and value > option.maximum:
                problems.append(Problem(given.where, f"{shown} is too large", f"at most {option.maximum:g}"))


def _name_from_pod(values: dict[str, object]) -> None:
    """Replace a name that is empty or holds placeholders, as of a pod spec whose variables were not set (Kuma 2.8)."""
    name, pod, namespace = str(values.get("name", "")), values.get("pod_name"), values.get("pod_namespace")
    if (not name or _PLACEHOLDER.search(name)) and pod and namespace:
        values["name"] = f"{pod}.{namespace}"


def config_file(flags: Mapping[str, object], environ: Mapping[str, str]) -> str:
    """Return the path of the settings file, which is read before all other options; empty if none is given."""
    return str(flags.get("config") or environ.get(own_variable("--config")) or "")


def _warn_of_misspelled(merge: _Merge) -> None:
    """Warn of variables similar to one of ours; not of all with our prefix, which Kubernetes sets for a service."""
    names = {name for option in options() for name in option.variables if name.startswith(OWN)}
    for name in sorted(merge.environ):
        if name.startswith(OWN) and name not in names:
            import difflib

            similar = difflib.get_close_matches(name, names, 1, _SIMILAR)
            if similar:
                merge.warnings.append(
                    f"variable {on_one_line(name)} is unknown and ignored; did you mean {similar[0]}?"
                )


def _warn_of_overruled(values: Mapping[str, object], merge: _Merge) -> None:
    """Warn of options that have no effect because another given option takes precedence."""
    for winner, loser, what in _ALTERNATIVES:
        if values.get(winner) and values.get(loser):
            first, second = merge.given[winner].where, merge.given[loser].where
            merge.warnings.append(f"{first} takes precedence over {second}: both give {what}, remove one of them")
    if values.get("skip_verify"):
        ignored = [merge.given[field].where for field in ("ca_cert", "ca_cert_file") if values.get(field)]
        if ignored:
            where = merge.given["skip_verify"].where
            merge.warnings.append(f"{where} takes precedence over {' and '.join(ignored)}: no certificate is verified")


def _warn_without_coredns(values: Mapping[str, object], merge: _Merge) -> None:
    """Warn of options for CoreDNS if the settings rule it out."""
    mode = values.get("dns_mode", "auto")
    if not values.get("dns_enabled", True):
        mode = "off"
    elif mode == "auto" and values.get("dns_proxy_port"):
        mode = "embedded"
    if mode in {"embedded", "off"}:
        ignored = [
            merge.given[field].where
            for field in ("coredns_path", "coredns_config_template_path", "dns_config_dir")
            if field in merge.given and values[field]
        ]
        if ignored:
            reason = "the embedded resolver is used" if mode == "embedded" else "DNS is off"
            merge.warnings.append(f"ignored because {reason}: {', '.join(ignored)}")


def _check_run(values: dict[str, object], merge: _Merge) -> None:
    given = [merge.given[field].where for field in ("dataplane_file", "dataplane") if values.get(field)]
    if not values.get("standalone"):
        _warn_of_overruled(values, merge)
    _warn_without_coredns(values, merge)
    _check_stdin(values, merge)
    if values.get("standalone"):
        _check_standalone(merge, given)
        return
    if given:
        _check_given(merge)
    else:
        _check_names(values, merge)
    _check_address(values, merge)


def _check_stdin(values: Mapping[str, object], merge: _Merge) -> None:
    files = values.get("transparent_proxy_config")
    readers = [merge.where(field, "--config") for field in ("config", "dataplane_file") if values.get(field) == "-"]
    readers += [
        merge.where("transparent_proxy_config", "")
        for name in (files if isinstance(files, tuple) else ())
        if name == "-"
    ]
    if len(readers) > 1:
        merge.problems.append(Problem(" and ".join(readers), "both read stdin", "use a file for one of them"))


def _check_standalone(merge: _Merge, given: list[str]) -> None:
    if given:
        where = merge.where("standalone", "--standalone")
        merge.problems.append(Problem(where, "reads the Dataplane from its own path", f"remove {' and '.join(given)}"))
    ignored = [
        merge.given[option.field].where
        for option in options_of("run")
        if option.field in merge.given and (option.group == CP or option.field in _FOR_CONTROL_PLANE)
    ]
    if ignored:
        merge.warnings.append(f"ignored in standalone mode: {', '.join(ignored)}")


def _check_given(merge: _Merge) -> None:
    both = [merge.given[field].where for field in ("name", "mesh") if field in merge.given and merge.given[field].value]
    if both:
        merge.problems.append(
            Problem(
                " and ".join(both),
                "name and mesh come from the given Dataplane",
                "remove these options, or use a template with --dataplane-var in the Dataplane",
            )
        )


def _check_names(values: Mapping[str, object], merge: _Merge) -> None:
    if not values.get("name"):
        hint = "give --dataplane-file, --name and --mesh, or --standalone"
        merge.problems.append(Problem("--name", "neither a Dataplane nor a name is given", hint))
    if not values.get("mesh") and values.get("proxy_type", "dataplane") == "dataplane":
        merge.problems.append(Problem("--mesh", "no mesh is given", "give --mesh or KUMA_DATAPLANE_MESH"))
    for field in ("name", "mesh"):
        value = str(values.get(field, ""))
        where = merge.where(field, f"--{field}")
        if _PLACEHOLDER.search(value):
            merge.problems.append(Problem(where, f"{value!r} is not a valid name", "is it an unresolved placeholder?"))
        elif _NOT_IN_A_NAME.search(value):
            merge.problems.append(Problem(where, f"{value!r} is not a valid name", "use letters, digits, - and ."))
        elif len(value) > _MAX_NAME:
            merge.problems.append(Problem(where, "is too long", f"at most {_MAX_NAME} characters"))


def _check_address(values: Mapping[str, object], merge: _Merge) -> None:
    text = str(values.get("cp_address", ""))
    for address in split_addresses(text) if text else ():
        reason = _why_not_http(address)
        if reason is not None:
            hint = "write one like https://control-plane:5678"
            where = merge.given["cp_address"].where
            merge.problems.append(Problem(where, f"{address!r} is not an http or https address{reason}", hint))


def _why_not_http(address: str) -> str | None:
    """Return None for an http or https address, else the reason with a colon in front, which may be empty."""
    if re.search(r"\s", address):
        return ""
    try:
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            return ""
    except ValueError:
        return ""
    try:
        dialled_url(address)
    except ValueError as error:
        return f": {error}"
    return None
