"""``kumadp validate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict

from kumadp.cli.completion import files
from kumadp.errors import ExitCode, ResourceError, UsageError
from kumadp.resources.kuma_versions import ALL
from kumadp.resources.load import load_resource_file
from kumadp.settings.values import BadValue, parse_assignments

if TYPE_CHECKING:
    from kumadp.errors import Problem


@click.command()
@click.argument("files", nargs=-1, shell_complete=files)
@click.option("-o", "--output", type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.option("-v", "--dataplane-var", "variables", multiple=True, metavar="NAME=VALUE", help="Template variable.")
@click.option(
    "--kuma",
    "version",
    type=click.Choice(ALL),
    help="Judge as the API of this version of Kuma does. Without it, a problem is what none of them accepts, and what "
    "only some refuse is a note that names them.",
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the resources and exit.")
def validate(files: tuple[str, ...], output: str, variables: tuple[str, ...], version: str | None, schema: bool) -> int:
    """Check Dataplane, ZoneIngress and ZoneEgress FILES; - reads stdin.

    Prints all problems with file, line, field path and a hint, and notes on fields that have no effect. Exit code 0 if
    all files are valid, otherwise 65.
    """
    if schema:
        from kumadp.resources.schema import json_schema

        click.echo(json.dumps(json_schema(), indent=2))
        return ExitCode.OK
    if not files:
        raise UsageError("no file to check", "kumadp validate FILE...")
    problems: list[Problem] = []
    notes: list[Problem] = []
    values = _pairs(variables)
    for name in files:
        try:
            notes += load_resource_file(name, variables=values, version=version or "").notes
        except ResourceError as error:
            problems += error.problems
    if output == "json":
        body = {"valid": not problems, "problems": [asdict(p) for p in problems], "notes": [asdict(n) for n in notes]}
        click.echo(json.dumps(body, indent=2))
    else:
        for problem in problems:
            click.echo(f"error: {problem}")
        for note in notes:
            click.echo(f"note: {note}")
        if not problems:
            click.echo(f"{len(files)} valid")
    return ExitCode.RESOURCE if problems else ExitCode.OK


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        try:
            pairs.update(parse_assignments(text))
        except BadValue as error:
            raise UsageError(f"--dataplane-var {text!r} {error}") from None
    return pairs
