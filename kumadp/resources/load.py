"""Loading of resources from a text, a file or stdin, with all checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import msgspec.structs

from kumadp import yamltext
from kumadp.errors import Problem, ResourceError
from kumadp.resources.fields import RESOURCES
from kumadp.resources.parse import BOUNDS, Parser
from kumadp.resources.resource import Resource
from kumadp.resources.template import render
from kumadp.resources.types import SPECS
from kumadp.resources.validate import check

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STDIN = "-"
# Instead of a version: no control plane judges the resource.
STANDALONE = "standalone"


def load_resource(text: str, source: str, *, variables: Mapping[str, str] | None = None, version: str = "") -> Resource:
    """Render, parse and check ``text``; raises ResourceError with every problem.

    ``version``: judge as the API of this version of Kuma does, one of `kuma_versions.ALL`; by default a problem is what
    none of them accepts, and what only some refuse is a note. ``STANDALONE``: without notes on versions.
    """
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
    findings = check(resource)
    for path, (written, sent) in parser.respelled.items():
        findings.fail_in_api(path, f"{written!r} is not known", f"write {sent}, which kumadp sends", quiet=True)
    if version == STANDALONE:
        judgement = findings.without_control_plane()
    else:
        judgement = findings.for_version(version) if version else findings.for_any()
    problems = [*parser.problems, *(problem for problem in judgement.problems if problem.path not in reported)]
    if problems:
        raise ResourceError(problems)
    return msgspec.structs.replace(resource, notes=(*resource.notes, *judgement.notes)) if judgement.notes else resource


def load_resource_file(
    path: Path | Literal["-"] | str, *, variables: Mapping[str, str] | None = None, version: str = ""
) -> Resource:
    """As `load_resource`, from a file; ``-`` is stdin. Raises ResourceError, also if the file cannot be read."""
    source = "stdin" if path == STDIN else str(path)
    try:
        text = yamltext.read(str(path), BOUNDS)
    except UnicodeDecodeError:
        raise ResourceError([Problem("", "is not UTF-8 text", file=source)]) from None
    except OSError as error:
        raise ResourceError([Problem("", f"cannot be read: {error.strerror}", file=source)]) from None
    return load_resource(text, source, variables=variables, version=version)
