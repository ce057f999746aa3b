"""The status of a data plane as text that a person can read in ten seconds. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from kumadp.errors import on_one_line
from kumadp.settings.values import format_elapsed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Status = Mapping[str, Any]

_LABEL = 14
# Listeners that one line names.
_MOST_NAMED = 3
_COLORS = {
    "READY": "green",
    "RUNNING": "green",
    "STARTING": "yellow",
    "BACKOFF": "yellow",
    "DRAINING": "yellow",
    "EXITED": "red",
    "FATAL": "red",
}


def page(status: Status, now: float, *, color: bool = False) -> list[str]:
    """Return the lines of the page; ``now`` in seconds since 1970."""
    return [*_head(status, now, color=color), "", *_children(status, now, color=color), "", *_rest(status, now)]


def summary(status: Status, now: float, *, color: bool = False) -> str:
    """Return one line for one of several data planes; ``now`` in seconds since 1970."""
    why = "; ".join(status.get("reasons") or ()) or status.get("why", "")
    phase = on_one_line(str(status.get("phase", "")))
    state = _paint(f"{phase:<9}", color=color)
    name = on_one_line(str(status["name"]))
    return f"{name:<24} {state} {format_elapsed(now - status.get('since', now)):>8}  {on_one_line(str(why))}"


def totals(statuses: Sequence[Status]) -> str:
    """Return one line for all of several data planes: phases, restarts, warnings, what was dropped."""
    phases: dict[str, int] = {}
    for status in statuses:
        phase = on_one_line(str(status.get("phase", "")))
        phases[phase] = phases.get(phase, 0) + 1
    parts = [", ".join(f"{count} {phase}" for phase, count in sorted(phases.items(), key=lambda item: -item[1]))]
    restarts = sum(child["restarts"] for status in statuses for child in status.get("children", {}).values())
    warnings = sum(len(status.get("concerns", ())) for status in statuses)
    dropping = sum(any(_drops(status)) for status in statuses)
    counts = ((restarts, "restart"), (warnings, "warning"), (dropping, "with drops"))
    for count, what in counts:
        plural = "s" if count != 1 and not what.startswith("with") else ""
        parts += [f"{count} {what}{plural}"] if count else []
    return f"{len(statuses)} data planes: {'; '.join(parts)}"


def _paint(text: str, *, color: bool) -> str:
    foreground = _COLORS.get(text.strip())
    return click.style(text, fg=foreground, bold=True) if color and foreground else text


def _head(status: Status, now: float, *, color: bool) -> Iterator[str]:
    name = on_one_line(f"{status['name'] or '(no name)'} in mesh {status.get('mesh') or '(none)'}")
    phase, why = _paint(on_one_line(str(status["phase"])), color=color), on_one_line(str(status["why"]))
    yield f"{name}: {phase} for {format_elapsed(now - status['since'])} ({why})"
    up = format_elapsed(now - status["started"])
    yield on_one_line(f"  kumadp {status['version']}, pid {status['pid']}, up {up}, {status['mode']}")
    for label, texts in (
        ("not ready", status["reasons"]),
        ("warnings", status["concerns"]),
        ("failed", [f"{part}: {reason}" for part, reason in status["fatal"].items()]),
    ):
        yield from _list(label, texts)


def _children(status: Status, now: float, *, color: bool) -> Iterator[str]:
    if not status["children"]:
        yield _line("children", "none yet")
    for name, child in status["children"].items():
        parts = [f"pid {child['pid']}" if child["pid"] else "no process"]
        if child.get("started"):
            parts.append(f"up {format_elapsed(now - child['started'])}")
        parts.append(f"{child['restarts']} restart{'' if child['restarts'] == 1 else 's'}")
        if version := status.get("versions", {}).get(name):
            parts.append(f"version {version}")
        if name == "envoy" and "epoch" in status:
            parts.append(f"epoch {status['epoch']}")
        reason = f": {on_one_line(child['reason'])}" if child["reason"] else ""
        state = _paint(on_one_line(child["state"]), color=color)
        yield _line(on_one_line(name), f"{state}{reason}, {on_one_line(', '.join(parts))}")
        if child["last_exit"]:
            when = f" {_ago(child['died'], now)}" if child.get("died") else ""
            yield _line("", f"last exit{when}: {on_one_line(child['last_exit'])}")


def _application(application: Mapping[str, Any], now: float) -> str:
    state, pid, started = application["state"], application["pid"], application["started"]
    if application["ended"]:
        return on_one_line(f"{state} with {application['ended']}")
    up = f", up {format_elapsed(now - started)}" if started else ""
    return str(state) + (f", pid {pid}{up}" if pid else " until traffic flows")


def _rest(status: Status, now: float) -> Iterator[str]:
    if "application" in status:
        yield _line("application", on_one_line(_application(status["application"], now)))
    if drain := status.get("drain"):
        since = format_elapsed(now - drain["since"])
        yield _line("drained", on_one_line(f"{drain['scope']}, for {since} (to undo it: kumadp drain --undo)"))
    if status["mode"] != "standalone":
        yield from _list("control plane", list(_control_plane(status, now)))
    if "token_expires" in status:
        yield _line("token", _expiry(status["token_expires"], now))
    yield from _list("ports", [f"{purpose}: {where}" for purpose, where in status["ports"].items()])
    log = status.get("log", {})
    if log.get("changed"):
        parts = "".join(f", {name} {level}" for name, level in log["components"].items())
        levels = f"kumadp {log['level']}, envoy {log['envoy_level']}{parts} (by kumadp log-level)"
        yield _line("log level", on_one_line(levels))
    if descriptors := status.get("descriptors"):
        yield _line("descriptors", f"{descriptors['used']} of {descriptors['limit']}")
    if crash := status.get("crashes", {}).get("newest"):
        yield _line("crash record", on_one_line(crash))
    yield _line("drops", ", ".join(_drops(status)) or "none")


def _control_plane(status: Status, now: float) -> Iterator[str]:
    address = on_one_line(str(status.get("control_plane", "")))
    if generation := status.get("control_plane_generation"):
        address += f" (Kuma {generation})"
    relay = status.get("relay")
    if relay is None:
        yield f"{address}: Envoy's own connection, or none yet"
        return
    if relay["connected_since"]:
        yield f"{address}: connected to {relay['address']} for {format_elapsed(now - relay['connected_since'])}"
    else:
        error = f", {on_one_line(relay['last_error'])}" if relay["last_error"] else ""
        yield f"{address}: {relay['state']} for {format_elapsed(now - relay['since'])}{error}"
    yield "last configuration " + (_ago(relay["received"], now) if relay["received"] else "none yet")
    if rejection := relay["last_rejection"]:
        what = f"{rejection['type'].rpartition('.')[2]} {rejection['version']}"
        yield on_one_line(f"last rejection {_ago(rejection['at'], now)}: {what}: {rejection['reason']}")
    for withheld in relay.get("withheld", ()):
        what = f"{withheld['type'].rpartition('.')[2]} {withheld['name']}"
        why = f": {withheld['reason']}" if withheld["reason"] else ""
        at = withheld.get("retry_at")
        retry = f"; retried in {format_elapsed(max(0.0, at - now))}" if at else ""
        yield on_one_line(f"withheld from Envoy for {format_elapsed(now - withheld['since'])}: {what}{why}{retry}")
    if more := relay.get("withheld_count", 0) - len(relay.get("withheld", ())):
        yield f"withheld from Envoy: {more} more"
    unbound = [each["listener"] for each in relay.get("kept_sockets", ()) if not each["bound"]]
    if unbound:
        more = ", ..." if len(unbound) > _MOST_NAMED else ""
        names = ", ".join(map(on_one_line, unbound[:_MOST_NAMED])) + more
        yield f"not bound until Envoy is replaced (kumadp reload): {names}"
    if "stale_since" in status:
        yield f"serving the last good configuration, of {_ago(status['stale_since'], now)}"


def _drops(status: Status) -> Iterator[str]:
    if lost := status.get("log", {}).get("dropped"):
        yield f"{lost} log lines"
    if lost := status.get("access_logs", {}).get("dropped"):
        yield f"{lost} lines of access logs"
    servers = status.get("connections", {})
    if lost := sum(server["refused"] + server["displaced"] for server in servers.values()):
        yield f"{lost} connections"
    if bad := sum(server["bad_requests"] for server in servers.values()):
        yield f"{bad} bad requests"


def _expiry(at: float | None, now: float) -> str:
    if at is None:
        return "never expires"
    return f"valid for {format_elapsed(at - now)}" if at > now else f"expired {_ago(at, now)}"


def _ago(at: float, now: float) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    return f"{format_elapsed(now - at)} ago ({when})"


def _list(label: str, texts: list[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield _line("" if number else label, on_one_line(text))


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}} {text}"
