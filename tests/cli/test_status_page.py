"""The page that `kumadp status` prints."""

from __future__ import annotations

import re
from typing import Any

from kumadp.cli.status_page import page, summary, totals
from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.process.restart_policy import ChildState
from kumadp.process.supervisor import ChildReport
from kumadp.settings.values import format_elapsed
from tests.support.readmes import output_of

NOW = 1_700_000_000.0


def message(**more: Any) -> dict[str, Any]:
    status = Status("web-1", more.pop("mode", "standalone"), "default")
    status.move(Phase.READY, "Envoy is LIVE with its listeners")
    status.note_child(
        ChildReport(
            "envoy", ChildState.RUNNING, 42, NOW - 60, 1, "envoy ended with signal 9 (KILL)", "", NOW - 60, NOW - 61
        )
    )
    status.ports["readiness"] = "http://127.0.0.1:9902/ready"
    # Servers of other tests in this process have counters, too.
    return {**status.snapshot(), "since": NOW - 60, "started": NOW - 7384, "connections": {}, **more}


def test_spans_have_two_units() -> None:
    spans = {
        0: "0s",
        0.9: "0s",
        41: "41s",
        60: "1m",
        61: "1m 1s",
        3600: "1h",
        3605: "1h",
        7384: "2h 3m",
        90061: "1d 1h",
    }
    assert {span: format_elapsed(span) for span in spans} == spans
    assert format_elapsed(-5) == "0s"


def test_processes_are_at_the_top() -> None:
    lines = page(message(), NOW)
    assert lines[0] == "web-1 in mesh default: READY for 1m (Envoy is LIVE with its listeners)"
    assert re.fullmatch(r"  kumadp \S+, pid \d+, up 2h 3m, standalone", lines[1])
    text = "\n".join(lines)
    assert "envoy          RUNNING, pid 42, up 1m, 1 restart\n" in text
    assert "last exit 1m 1s ago (2023-11-14T22:12:19Z): envoy ended with signal 9 (KILL)" in text
    assert "ports          readiness: http://127.0.0.1:9902/ready" in text
    assert "drops          none" in text
    assert "control plane" not in text
    assert max(map(len, lines)) < 110


def test_each_reason_warning_and_failure_has_a_line() -> None:
    status = message(
        ready=False,
        reasons=["bootstrap: requested", "dns: not yet"],
        concerns=["last good: old"],
        fatal={"coredns": "died"},
    )
    text = "\n".join(page(status, NOW))
    assert "  not ready      bootstrap: requested\n                 dns: not yet\n" in text
    assert "  warnings       last good: old\n" in text
    assert "  failed         coredns: died\n" in text
    assert "bootstrap: requested; dns: not yet" in summary(status, NOW)


def relay(**more: Any) -> dict[str, Any]:
    return {
        "state": "open",
        "since": NOW - 120,
        "connected_since": NOW - 120,
        "address": "cp:5678",
        "last_error": "",
        "received": NOW - 30,
        "last_rejection": None,
        **more,
    }


def test_the_control_plane_and_its_configuration() -> None:
    status = message(mode="control plane", control_plane="https://cp:5678", relay=relay(), token_expires=NOW + 7200)
    text = "\n".join(page(status, NOW))
    assert "control plane  https://cp:5678: connected to cp:5678 for 2m\n" in text
    with_kuma_3 = "\n".join(page({**status, "control_plane_generation": 3}, NOW))
    assert "control plane  https://cp:5678 (Kuma 3): connected to cp:5678 for 2m\n" in with_kuma_3
    assert "last configuration 30s ago" in text
    assert "token          valid for 2h" in text
    rejection = {
        "type": "a/b.Listener",
        "version": "v2",
        "reason": "no \x1b[31mroute",
        "at": NOW - 9,
        "by_guard": False,
    }
    away = relay(state="backoff", connected_since=None, last_error="Connection refused", last_rejection=rejection)
    status |= {
        "relay": away,
        "token_expires": NOW - 60,
        "log": {"dropped": 3},
        "access_logs": {"dropped": 2},
        "stale_since": NOW - 3600,
    }
    text = "\n".join(page(status, NOW))
    assert "https://cp:5678: backoff for 2m, Connection refused\n" in text
    assert r"Listener v2: no \x1b[31mroute" in text, "what a peer sends moves no cursor"
    assert "token          expired 1m ago" in text
    assert "drops          3 log lines, 2 lines of access logs" in text
    assert "serving the last good configuration, of 1h ago" in text
    assert "never expires" in "\n".join(page({**status, "token_expires": None}, NOW))


def test_withheld_resources_that_are_not_listed_are_counted() -> None:
    one = {"type": "a/b.Listener", "name": "in", "reason": "cannot bind", "policies": [], "since": NOW - 60}
    one["retry_at"] = NOW + 30
    text = "\n".join(page(message(mode="control plane", relay=relay(withheld=[one], withheld_count=3)), NOW))
    assert "withheld from Envoy for 1m: Listener in: cannot bind; retried in 30s\n" in text
    assert "withheld from Envoy: 2 more" in text


def test_listeners_that_envoy_does_not_bind_are_named() -> None:
    kept = [{"listener": f"out-{number}", "reuse_port": True, "bound": False} for number in range(4)]
    kept.append({"listener": "in", "reuse_port": True, "bound": True})
    text = "\n".join(page(message(mode="control plane", relay=relay(kept_sockets=kept, kept_sockets_count=5)), NOW))
    assert "not bound until Envoy is replaced (kumadp reload): out-0, out-1, out-2, ...\n" in text
    kept = kept[-1:]
    text = "\n".join(page(message(mode="control plane", relay=relay(kept_sockets=kept, kept_sockets_count=1)), NOW))
    assert "not bound" not in text


def test_the_application_has_a_line() -> None:
    runs = {"state": "RUNNING", "pid": 43, "started": NOW - 59, "ended": ""}
    waits = {"state": "WAITING", "pid": None, "started": None, "ended": ""}
    ended = {"state": "ENDED", "pid": None, "started": NOW - 59, "ended": "exit code 7"}
    shown = ["".join(line for line in page(message(application=item), NOW) if "application" in line)[17:]
             for item in (runs, waits, ended)]  # fmt: skip
    assert shown == ["RUNNING, pid 43, up 59s", "WAITING until traffic flows", "ENDED with exit code 7"]


def test_colours_only_if_requested() -> None:
    assert "\x1b[" not in "".join(page(message(), NOW))
    assert "\x1b[32m" in page(message(), NOW, color=True)[0]


def test_readme_shows_this_page() -> None:
    now = 1_795_576_402.0
    died = "envoy ended with signal 9 (KILL) after 7301.4 s"
    running, begun = ChildState.RUNNING, now - 7384
    status = Status("web-1", "control plane", "default")
    status.move(Phase.READY, "Envoy is LIVE with its listeners")
    status.note_child(ChildReport("envoy", running, 4377, now - 72, 1, died, "", now - 72, now - 73))
    status.note_child(ChildReport("coredns", running, 4219, begun, 0, "", "", begun))
    status.ports = {
        "readiness": "http://127.0.0.1:9902/ready",
        "virtual probes": "http://127.0.0.1:9000",
        "admin": "127.0.0.1:9901",
        "dns": "127.0.0.1:15053",
    }
    status.facts = {"versions": {"envoy": "1.40.0", "coredns": "1.14.7"}, "epoch": 1}
    status.facts |= {"control_plane": "https://localhost:5678", "token_expires": now + 72000}
    status.facts["relay"] = relay(address="localhost:5678", connected_since=begun, received=now - 842)
    status.facts["descriptors"] = {"used": 57, "limit": 65536}
    crash = "/var/lib/kumadp/web-1/crashes/20261125T031209.412Z-envoy-4213.json"
    status.facts["crashes"] = {"newest": crash, "story": died}
    # Servers of other tests in this process have counted connections, too.
    message = {**status.snapshot(), "connections": {}, "since": now - 72, "started": begun, "pid": 4211}
    shown = output_of("kumadp status")
    assert "\n".join(page(message, now)) + "\n" == shown


def test_what_is_drained_has_a_line() -> None:
    (line,) = [line for line in page(message(drain={"scope": "inbound", "since": NOW - 61}), NOW) if "drained" in line]
    assert line == "  drained        inbound, for 1m 1s (to undo it: kumadp drain --undo)"


def test_totals() -> None:
    waiting = {**message(), "phase": "STARTING", "concerns": ["dns: x", "token: y"]}
    assert totals([message(), waiting, message()]) == "3 data planes: 2 READY, 1 STARTING; 3 restarts; 2 warnings"
    assert totals([{"phase": "READY"}]) == "1 data planes: 1 READY"
