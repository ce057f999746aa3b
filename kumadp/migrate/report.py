"""The plan of a migration as text and as JSON, without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from kumadp.host.log.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.migrate.plan import MigrationPlan, NewFile

_COLORS = {
    "understood": "green",
    "free": "green",
    "mapped": "yellow",
    "held by kuma-dp": "yellow",
    "in the way": "red",
}
_STATE = 16
# How many free ports are named.
_SHOWN = 8
_HIDDEN = "(secret: not shown)"


def as_json(plan: MigrationPlan) -> Any:
    """Return the plan as JSON types."""
    source = plan.source
    return _redacted(
        {
            "kuma_dp": {
                "origin": source.origin,
                "version": source.version,
                "unit": source.unit,
                "user": source.user,
                "pids": list(source.pids),
            },
            "name": plan.name,
            "unit": plan.unit if not source.service else "",
            "user": plan.user,
            "options": [asdict(option) for option in plan.options],
            "files": [
                {"path": str(file.path), "mode": f"{file.mode:o}", "text": _HIDDEN if file.secret else file.text}
                for file in plan.files
            ],
            "ports": [asdict(clash) for clash in plan.clashes],
            "control_plane": plan.control_plane,
            "switch_over": plan.switch_over(),
            "problems": plan.problems,
            "in_the_way": plan.in_the_way,
        }
    )


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def lines(plan: MigrationPlan, *, color: bool = False) -> Iterator[str]:
    """Yield the lines of the report."""
    for line in _lines(plan, color=color):
        yield redact(line)


def _lines(plan: MigrationPlan, *, color: bool) -> Iterator[str]:
    source = plan.source
    new = plan.unit if not source.service else f"service {source.service} with the image of kumadp"
    yield f"kuma-dp{f' {source.version}' if source.version else ''} ({source.origin}) -> {new}"
    yield from _section("options")
    for option in plan.options:
        value = f" {option.value}" if option.value else ""
        origin = " (not given)" if option.source == "default" else ""
        yield f"{_state(option.verdict, color=color)} {option.name}{value}{origin}"
        yield f"{'':<{_STATE}} -> {option.text}"
    if not plan.options:
        yield "all defaults"
    if plan.files:
        yield from _section("files")
    for file in plan.files:
        yield from _file(file)
    if not source.service:
        yield from _section("user")
        was = source.user or "one of systemd's"
        yield f"{plan.user}" + ("" if was == plan.user else f" (kuma-dp: {was})")
    if plan.clashes:
        yield from _section("ports")
    free = [clash for clash in plan.clashes if clash.state == "free"]
    if free:
        more = f" and {len(free) - _SHOWN} more" if len(free) > _SHOWN else ""
        yield f"{_state('free', color=color)} {', '.join(clash.address for clash in free[:_SHOWN])}{more}"
    for clash in plan.clashes:
        if clash.state == "free":
            continue
        holder = f", {clash.holder}" if clash.holder else ""
        yield f"{_state(clash.state, color=color)} {clash.address} for {clash.purpose}{holder}"
    if plan.control_plane:
        yield from _section("what the control plane sees")
    yield from plan.control_plane
    yield from _section("switch over")
    for label, command in plan.switch_over().items():
        yield f"{label + ':':<{_STATE}} {command}"
    if plan.problems:
        yield from _section("in the way")
    yield from plan.problems
    yield ""
    counts = [option.verdict for option in plan.options]
    parts = [f"{counts.count(verdict)} {verdict}" for verdict in ("understood", "mapped", "ignored")]
    yield f"{plan.in_the_way} in the way; options: {', '.join(parts)}"


def _section(title: str) -> Iterator[str]:
    yield ""
    yield f"# {title}"


def _state(text: str, *, color: bool) -> str:
    shown = f"{text:<{_STATE}}"
    return click.style(shown, fg=_COLORS[text]) if color and text in _COLORS else shown


def _file(file: NewFile) -> Iterator[str]:
    yield f"{file.path} (mode {file.mode:o})"
    texts = [_HIDDEN] if file.secret else file.text.splitlines()
    yield from (f"  {line}" for line in texts)
