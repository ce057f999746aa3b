"""Loading of resources from a text, a file or stdin, with all checks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from kumadp import yamltext
from kumadp.errors import Problem, ResourceError
from kumadp.resources.fields import RESOURCES
from kumadp.resources.parse import BOUNDS, Parser
from kumadp.resources.template import render
from kumadp.resources.types import SPECS, Admin, Spec
from kumadp.resources.validate import validate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Resource:
    """A checked Dataplane, ZoneIngress or ZoneEgress.

    ``tree`` is the document as it is sent on, with known names normalised and unknown keys kept. ``notes`` are remarks
    that do not prevent its use.
    """

    kind: str
    mesh: str
    name: str
    labels: Mapping[str, str]
    tree: Mapping[str, Any]
    spec: Spec
    source: str
    notes: tuple[Problem, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)

    def where(self, path: str) -> tuple[str, int]:
        """Return file and line of a field path, or of the longest part of it in the document; line 0 if unknown."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.source, self.lines.get(path, 0)


def with_admin_port(resource: Resource, port: int) -> Resource:
    """Return the resource with this ``networking.admin.port``, unless it sets one itself."""
    networking = resource.spec.networking
    if networking.admin is not None and networking.admin.port:
        return resource
    spec = msgspec.structs.replace(
        resource.spec, networking=msgspec.structs.replace(networking, admin=Admin(port=port))
    )
    tree = {**resource.tree, "networking": {**resource.tree["networking"], "admin": {"port": port}}}
    return dataclasses.replace(resource, spec=spec, tree=tree)


def load_resource(text: str, source: str, *, variables: Mapping[str, str] | None = None) -> Resource:
    """Render, parse and check ``text``; raises ResourceError with every problem."""
    parser = Parser(source)
    root = parser.compose(render(text, variables or {}, source))
    if root is None:
        raise ResourceError(parser.problems)
    kind = next((str(value.value) for key, value in yamltext.pairs(root) if key.value == "type"), "")
    if kind not in RESOURCES:
        message = f"{kind!r} is not known" if kind else "is missing"
        line = root.start_mark.line + 1
        raise ResourceError(
            [*parser.problems, Problem("type", message, f"one of {', '.join(RESOURCES)}", source, line)]
        )
    tree = parser.message(root, RESOURCES[kind], "")
    spec = msgspec.convert(tree, SPECS[kind], strict=False)
    resource = Resource(
        kind,
        str(tree.get("mesh", "")),
        str(tree.get("name", "")),
        tree.get("labels", {}),
        tree,
        spec,
        source,
        tuple(parser.unknown),
        parser.lines,
    )
    # A value that could not be parsed is absent now: its absence is not reported a second time.
    reported = {problem.path for problem in parser.problems}
    violations, notes = validate(resource)
    problems = [*parser.problems, *(problem for problem in violations if problem.path not in reported)]
    if problems:
        raise ResourceError(problems)
    return dataclasses.replace(resource, notes=(*resource.notes, *notes)) if notes else resource


def load_resource_file(path: Path | Literal["-"] | str, *, variables: Mapping[str, str] | None = None) -> Resource:
    """Load a resource from a file; ``-`` is stdin. Raises ResourceError, also if the file cannot be read."""
    source = "stdin" if path == STDIN else str(path)
    try:
        text = yamltext.read(str(path), BOUNDS)
    except UnicodeDecodeError:
        raise ResourceError([Problem("", "is not UTF-8 text", file=source)]) from None
    except OSError as error:
        raise ResourceError([Problem("", f"cannot be read: {error.strerror}", file=source)]) from None
    return load_resource(text, source, variables=variables)
