"""Flag, then variable, then file, then default: one pure merge that reports every problem at once."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import yaml

from kumadp import yamltext
from kumadp.errors import Problem, SettingsError
from kumadp.settings.model import Settings, options, options_of
from kumadp.settings.values import BadValue, read_value, write_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.settings.option import Option

BOUNDS = yamltext.Bounds(size=1 << 20, depth=20)
_PLACEHOLDER = re.compile(r"[$(){}]")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, warnings to log, and where each value came from (field name to ``flag --x``, ``variable X``...)."""

    settings: Settings
    warnings: tuple[str, ...]
    origin: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Found:
    value: object
    origin: str


def resolve(
    command: str,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_text: str | None = None,
    config_source: str = "",
) -> Resolved:
    """Merge everything; raises SettingsError with all problems.

    ``flags`` holds texts (or tuples of texts for what may be repeated) by field name, None where not given. Variables
    that are set but empty count as unset. kuma-dp lets the variable win over the flag; here the flag wins, and where
    the two differ a warning says so.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    wanted = options_of(command)
    from_file = _read_file(config_text, config_source, problems) if config_text is not None else {}
    found: dict[str, _Found] = {}
    for option in wanted:
        flag = _from_flag(option, flags.get(option.field), problems)
        variable = _from_variable(option, environ, problems)
        if flag and variable and flag.value != variable.value:
            seen = "***" if option.secret else write_value(option.kind, variable.value)
            warnings.append(
                f"{flag.origin} wins over {variable.origin}={seen}; kuma-dp would take the variable: remove one of them"
            )
        chosen = flag or variable or from_file.get(option.field)
        if chosen is not None:
            _check(option, chosen, problems)
            found[option.field] = chosen
    values = {name: entry.value for name, entry in found.items()}
    if command == "run":
        _check_run(values, found, problems)
    if problems:
        raise SettingsError(problems)
    origin = {item.name: found[item.name].origin if item.name in found else "default" for item in fields(Settings)}
    arguments: Any = values
    return Resolved(Settings(**arguments), tuple(warnings), origin)


def _from_flag(option: Option, given: object, problems: list[Problem]) -> _Found | None:
    if given is None or given == ():
        return None
    name = option.flags[0] if option.flags else option.field
    if isinstance(given, tuple):
        return _many(option, given, name, problems)
    return _parse(option, str(given), f"flag {name}", name, problems)


def _many(option: Option, given: tuple[object, ...], name: str, problems: list[Problem]) -> _Found | None:
    texts = [str(text) for text in given]
    if option.kind != "pairs":
        if option.kind == "integers":
            return _parse(option, ",".join(texts), f"flag {name}", name, problems)
        return _Found(tuple(texts), f"flag {name}")
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append(Problem(name, f"{text!r} is not name=value"))
        pairs[key] = value
    return _Found(pairs, f"flag {name}")


def _from_variable(option: Option, environ: Mapping[str, str], problems: list[Problem]) -> _Found | None:
    for name in option.variables:
        text = environ.get(name, "")
        if text:
            return _parse(option, text, f"variable {name}", name, problems)
    return None


def _parse(option: Option, text: str, origin: str, name: str, problems: list[Problem]) -> _Found | None:
    try:
        return _Found(read_value(option.kind, text), origin)
    except BadValue as error:
        shown = "***" if option.secret else repr(text)
        problems.append(Problem(name, f"{shown} {error}"))
        return None


def _check(option: Option, found: _Found, problems: list[Problem]) -> None:
    where = found.origin.split(" ", 1)[1]
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    for value in values:
        shown = "***" if option.secret else write_value(option.kind, value)
        if option.choices and value not in option.choices:
            near = difflib.get_close_matches(str(value), option.choices, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(filter(None, option.choices))}"
            problems.append(Problem(where, f"{shown} is not known", hint))
        if isinstance(value, int | float) and not isinstance(value, bool):
            if option.minimum is not None and value < option.minimum:
                least = write_value(option.kind, option.minimum)
                problems.append(Problem(where, f"{shown} is too small", f"at least {least}"))
            if option.maximum is not None and value > option.maximum:
                problems.append(Problem(where, f"{shown} is too large", f"at most {option.maximum:g}"))


def _check_run(values: dict[str, object], found: Mapping[str, _Found], problems: list[Problem]) -> None:
    name = str(values.get("name", ""))
    pod, namespace = values.get("pod_name"), values.get("pod_namespace")
    if (not name or _PLACEHOLDER.search(name)) and pod and namespace:
        # Kuma 2.8: unresolved placeholders in the name come from pod specs whose variables were not set.
        values["name"] = name = f"{pod}.{namespace}"
    standalone = bool(values.get("standalone"))
    given = [field for field in ("dataplane", "dataplane_file") if values.get(field)]
    if standalone and given:
        problems.append(Problem("--standalone", "takes the Dataplane from its own path", "leave --dataplane-file out"))
    elif given:
        both = [found[field].origin.split(" ", 1)[1] for field in ("name", "mesh") if field in found]
        if both:
            problems.append(
                Problem(
                    " and ".join(both),
                    "name and mesh come from the Dataplane that is given",
                    "leave them out, or change them in the Dataplane; a template with --dataplane-var can hold them",
                )
            )
    elif not standalone:
        if not name:
            problems.append(
                Problem(
                    "--name", "no Dataplane and no name", "give --dataplane-file, --name and --mesh, or --standalone"
                )
            )
        if not values.get("mesh") and values.get("proxy_type", "dataplane") == "dataplane":
            problems.append(Problem("--mesh", "the mesh is missing", "give --mesh or KUMA_DATAPLANE_MESH"))
    address = str(values.get("cp_address", "https://localhost:5678"))
    if not standalone and not re.match(r"^https?://[^/\s]+", address):
        problems.append(
            Problem(
                found["cp_address"].origin.split(" ", 1)[1],
                f"{address!r} is not an http or https address",
                "write one like https://control-plane:5678",
            )
        )


def _read_file(text: str, source: str, problems: list[Problem]) -> dict[str, _Found]:
    try:
        root = yamltext.compose(text, BOUNDS)
    except (yaml.YAMLError, ValueError) as error:
        problems.append(Problem("", f"not YAML: {yamltext.reason(error)}", file=source, line=yamltext.line(error)))
        return {}
    by_key = {option.key: option for option in options() if option.key}
    found: dict[str, _Found] = {}
    if root is not None:
        _walk(root, "", by_key, source, problems, found)
    return found


def _walk(
    node: yaml.Node,
    path: str,
    by_key: Mapping[str, Option],
    source: str,
    problems: list[Problem],
    found: dict[str, _Found],
) -> None:
    line = node.start_mark.line + 1
    option = by_key.get(path)
    if option is not None:
        value = _from_node(option, node, path, source, problems)
        if value is not None:
            found[option.field] = value
        return
    if not isinstance(node, yaml.MappingNode):
        problems.append(Problem(path, "is not a mapping", file=source, line=line))
        return
    for key, value_node in yamltext.pairs(node):
        below = f"{path}.{key.value}" if path else str(key.value)
        if below in by_key or any(known.startswith(below + ".") for known in by_key):
            _walk(value_node, below, by_key, source, problems, found)
        else:
            near = difflib.get_close_matches(below, by_key, 1)
            hint = f"did you mean {near[0]}?" if near else "configs/kumadp.yaml lists all keys"
            problems.append(Problem(below, "is not a setting", hint, source, key.start_mark.line + 1))


def _from_node(option: Option, node: yaml.Node, path: str, source: str, problems: list[Problem]) -> _Found | None:
    line = node.start_mark.line + 1
    origin = f"file {source}:{line}: {path}"
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith(":null") or not node.value:
            return None
        return _parse(option, str(node.value), origin, f"{source}:{line}: {path}", problems)
    if isinstance(node, yaml.SequenceNode) and option.kind in {"texts", "integers"}:
        texts = [str(item.value) for item in node.value if isinstance(item, yaml.ScalarNode)]
        if option.kind == "texts":
            return _Found(tuple(texts), origin)
        return _parse(option, ",".join(texts), origin, f"{source}:{line}: {path}", problems)
    if isinstance(node, yaml.MappingNode) and option.kind == "pairs":
        return _Found({str(key.value): str(value.value) for key, value in yamltext.pairs(node)}, origin)
    problems.append(Problem(path, f"is not a {option.kind}", file=source, line=line))
    return None
