"""Flag, then variable, then file, then default: one pure merge that reports every problem at once."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kumadp.addresses import dialled_url
from kumadp.errors import Problem, SettingsError, on_one_line
from kumadp.settings.display import show
from kumadp.settings.file import read_settings
from kumadp.settings.given import Found, parse
from kumadp.settings.model import CP, Settings, options, options_of
from kumadp.settings.option import OWN, own_variable
from kumadp.settings.values import BadValue, parse_assignments, split_addresses, write_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.settings.option import Option

_PLACEHOLDER = re.compile(r"[$(){}]")
# The name is a directory's and a socket's too.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]|\A\.")
_LONGEST_NAME = 253
# Of two that are named the first is taken (Kuma 2.8: the token itself goes before its file).
_EITHER = (
    ("dataplane_file", "dataplane", "a Dataplane"),
    ("ca_cert", "ca_cert_file", "a CA"),
    ("token", "token_path", "a token"),
)
_NEARLY = 0.85
# What means something to a control plane alone, apart from what is about itself.
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


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, warnings to log, and where each value came from (field name to ``flag --x``, ``variable X``...)."""

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
    """Merge everything; raises SettingsError with all problems.

    ``flags`` holds texts (or tuples of texts for what may be repeated) by field name, None where not given; ``typed``
    the flag as the user wrote it, where that may be an alias. Variables that are set but empty count as unset. kuma-dp
    lets the variable win over the flag; here the flag wins, and where the two differ a warning says so.
    """
    merge = _Merge(environ, typed or {})
    if config_text is not None:
        merge.from_file = read_settings(config_text, config_source, merge.problems)
    for option in options_of(command):
        merge.take(option, flags.get(option.field))
    values = {name: entry.value for name, entry in merge.found.items()}
    _name_from_pod(values)
    _warn_of_misspelled(merge)
    if command == "run":
        _check_run(values, merge)
    if merge.problems:
        raise SettingsError(merge.problems)
    if merge.without_effect:
        merge.warnings.append(f"no effect yet: {', '.join(merge.without_effect)}")
    origin = {item.name: merge.origin(item.name) for item in fields(Settings)}
    arguments: Any = values
    return Resolved(Settings(**arguments), tuple(merge.warnings), origin)


class _Merge:
    """What was given, and what is wrong with it."""

    def __init__(self, environ: Mapping[str, str], typed: Mapping[str, str]) -> None:
        self.environ = environ
        self._typed = typed
        self.from_file: Mapping[str, Found] = {}
        self.found: dict[str, Found] = {}
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.without_effect: list[str] = []

    def origin(self, field: str) -> str:
        return self.found[field].origin if field in self.found else "default"

    def where(self, field: str, otherwise: str) -> str:
        """The name the user typed for a setting, or what to call it where nobody named it."""
        return self.found[field].where if field in self.found else otherwise

    def take(self, option: Option, given: object) -> None:
        flag = self._from_flag(option, given)
        variable = self._from_variable(option)
        if flag and variable and flag.value != variable.value:
            advice = "remove one of them"
            if not any(name.startswith(OWN) for name in option.variables):
                advice = f"kuma-dp would take the variable: {advice}"
            self.warnings.append(f"{flag.origin} wins over {variable.origin}={show(option, variable.value)}; {advice}")
        chosen = flag or variable or self.from_file.get(option.field)
        if chosen is None:
            return
        _check(option, chosen, self.problems)
        self.found[option.field] = chosen
        if not option.effective and chosen.value != option.default:
            self.without_effect.append(chosen.where)

    def _from_flag(self, option: Option, given: object) -> Found | None:
        if given is None or given == ():
            return None
        origin = f"flag {self._typed.get(option.field, option.name)}"
        if not isinstance(given, tuple):
            return parse(option, str(given), origin, self.problems)
        texts = [str(text) for text in given]
        return Found(self._assignments(texts, origin) if option.kind == "pairs" else tuple(texts), origin)

    def _assignments(self, texts: list[str], origin: str) -> dict[str, str]:
        pairs = {}
        for text in texts:
            try:
                pairs.update(parse_assignments(text))
            except BadValue as error:
                self.problems.append(Problem(Found(None, origin).where, f"{text!r} {error}"))
        return pairs

    def _from_variable(self, option: Option) -> Found | None:
        for name in option.read_variables:
            text = self.environ.get(name, "")
            if option.field == "ca_cert":
                # What stands around its certificates may be in any encoding (RFC 7468, section 2).
                text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if text:
                return parse(option, text, f"variable {name}", self.problems)
        return None


def _check(option: Option, found: Found, problems: list[Problem]) -> None:
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    for value in values:
        shown = show(option, value)
        if "\0" in str(value):
            problems.append(Problem(found.where, "holds a NUL", "no file, name or address does"))
        elif any("\ud800" <= letter <= "\udfff" for letter in str(value)):
            # How Python hands on bytes of the command line and of variables that are no text (PEP 383).
            problems.append(Problem(found.where, "is not UTF-8 text", "write it as UTF-8"))
        elif option.choices and value not in option.choices:
            near = difflib.get_close_matches(str(value), option.choices, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(filter(None, option.choices))}"
            problems.append(Problem(found.where, f"{shown!r} is not known", hint))
        elif value == "" and option.default and option.kind == "text":
            problems.append(Problem(found.where, "is empty", f"the default is {option.default_text}"))
        if isinstance(value, int | float) and not isinstance(value, bool):
            if option.minimum is not None and value < option.minimum:
                least = write_value(option.kind, option.minimum)
                problems.append(Problem(found.where, f"{shown} is too small", f"at least {least}"))
            if option.maximum is not None and value > option.maximum:
                problems.append(Problem(found.where, f"{shown} is too large", f"at most {option.maximum:g}"))


def _name_from_pod(values: dict[str, object]) -> None:
    """Kuma 2.8: unresolved placeholders in the name come from pod specs whose variables were not set."""
    name, pod, namespace = str(values.get("name", "")), values.get("pod_name"), values.get("pod_namespace")
    if (not name or _PLACEHOLDER.search(name)) and pod and namespace:
        values["name"] = f"{pod}.{namespace}"


def config_file(flags: Mapping[str, object], environ: Mapping[str, str]) -> str:
    """The settings file that is named, which is read before everything else; empty without one."""
    return str(flags.get("config") or environ.get(own_variable("--config")) or "")


def _warn_of_misspelled(merge: _Merge) -> None:
    """A variable that is nearly one of ours; not any other of our prefix, which Kubernetes has for a service."""
    known = {name for option in options() for name in option.variables if name.startswith(OWN)}
    for name in sorted(merge.environ):
        if name.startswith(OWN) and name not in known:
            near = difflib.get_close_matches(name, known, 1, _NEARLY)
            if near:
                merge.warnings.append(f"variable {on_one_line(name)} is not known, did you mean {near[0]}?")


def _warn_of_overruled(values: Mapping[str, object], merge: _Merge) -> None:
    """What was named and has no effect, as something else that was named goes before it."""
    for winner, loser, what in _EITHER:
        if values.get(winner) and values.get(loser):
            first, second = merge.found[winner].where, merge.found[loser].where
            merge.warnings.append(f"{first} wins over {second}: both give {what}, remove one of them")
    if values.get("skip_verify"):
        useless = [merge.found[field].where for field in ("ca_cert", "ca_cert_file") if values.get(field)]
        if useless:
            where = merge.found["skip_verify"].where
            merge.warnings.append(f"{where} wins over {' and '.join(useless)}: no certificate is verified")


def _warn_without_coredns(values: Mapping[str, object], merge: _Merge) -> None:
    """What was named for CoreDNS where the settings rule it out."""
    mode = values.get("dns_mode", "auto")
    if not values.get("dns_enabled", True):
        mode = "off"
    elif mode == "auto" and values.get("dns_proxy_port"):
        mode = "embedded"
    if mode in {"embedded", "off"}:
        useless = [
            merge.found[field].where
            for field in ("coredns_path", "coredns_config_template_path", "dns_config_dir")
            if field in merge.found and values[field]
        ]
        if useless:
            who = "the embedded resolver answers names" if mode == "embedded" else "DNS is off"
            merge.warnings.append(f"no effect, as {who}: {', '.join(useless)}")


def _check_run(values: dict[str, object], merge: _Merge) -> None:
    given = [merge.found[field].where for field in ("dataplane_file", "dataplane") if values.get(field)]
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
        merge.problems.append(Problem(" and ".join(readers), "both read stdin", "give one of them a file"))


def _check_standalone(merge: _Merge, given: list[str]) -> None:
    if given:
        where = merge.where("standalone", "--standalone")
        merge.problems.append(
            Problem(where, "takes the Dataplane from its own path", f"leave {' and '.join(given)} out")
        )
    useless = [
        merge.found[option.field].where
        for option in options_of("run")
        if option.field in merge.found and (option.group == CP or option.field in _FOR_CONTROL_PLANE)
    ]
    if useless:
        merge.warnings.append(f"no effect in standalone mode: {', '.join(useless)}")


def _check_given(merge: _Merge) -> None:
    both = [merge.found[field].where for field in ("name", "mesh") if field in merge.found and merge.found[field].value]
    if both:
        merge.problems.append(
            Problem(
                " and ".join(both),
                "name and mesh come from the Dataplane that is given",
                "leave them out, or change them in the Dataplane; a template with --dataplane-var can hold them",
            )
        )


def _check_names(values: Mapping[str, object], merge: _Merge) -> None:
    if not values.get("name"):
        hint = "give --dataplane-file, --name and --mesh, or --standalone"
        merge.problems.append(Problem("--name", "no Dataplane and no name", hint))
    if not values.get("mesh") and values.get("proxy_type", "dataplane") == "dataplane":
        merge.problems.append(Problem("--mesh", "the mesh is missing", "give --mesh or KUMA_DATAPLANE_MESH"))
    for field in ("name", "mesh"):
        value = str(values.get(field, ""))
        where = merge.where(field, f"--{field}")
        if _PLACEHOLDER.search(value):
            merge.problems.append(Problem(where, f"{value!r} is no name", "a placeholder that was not filled in?"))
        elif _NOT_IN_A_NAME.search(value):
            merge.problems.append(Problem(where, f"{value!r} is no name", "letters, digits, - and ."))
        elif len(value) > _LONGEST_NAME:
            merge.problems.append(Problem(where, "is too long a name", f"at most {_LONGEST_NAME} characters"))


def _check_address(values: Mapping[str, object], merge: _Merge) -> None:
    text = str(values.get("cp_address", ""))
    for address in split_addresses(text) if text else ():
        why = _no_http(address)
        if why is not None:
            hint = "write one like https://control-plane:5678"
            where = merge.found["cp_address"].where
            merge.problems.append(Problem(where, f"{address!r} is not an http or https address{why}", hint))


def _no_http(address: str) -> str | None:
    """None where it is one; else what else there is to say, which may be nothing."""
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
