"""The doctor's check of a running data plane, from its status."""

from __future__ import annotations

from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.doctor.programs import running
from kumadp.doctor.subject import Subject
from kumadp.settings.resolve import resolve


def look(status: Status) -> list[tuple[str, str]]:
    settings = resolve("run", {"name": "web", "mesh": "default", "cp_address": "https://localhost:5678"}, {}).settings
    return [
        (result.state, result.text) for result in running(Subject(settings, None, None, None, {}, status.snapshot()))
    ]


def test_a_data_plane_that_is_not_ready() -> None:
    status = Status("web", "control plane", "default")
    assert look(status) == [("failed", "not ready: STARTING")]
    status.set_not_ready("bootstrap", "the control plane does not answer")
    status.set_not_ready("envoy", "Envoy is being started")
    assert look(status) == [
        ("failed", "not ready: bootstrap: the control plane does not answer"),
        ("failed", "not ready: envoy: Envoy is being started"),
    ]


def test_a_ready_data_plane_with_failed_parts_and_warnings() -> None:
    status = Status("web", "control plane", "default")
    status.move(Phase.READY, "all is well")
    status.mark_failed("coredns", "coredns ended with exit code 1; it was started 3 times in vain")
    status.set_warning("control plane", "away for 60 s")
    status.facts["restart_required"] = ["admin.address: another port"]
    results = look(status)
    assert (
        "failed",
        "coredns failed permanently: coredns ended with exit code 1; it was started 3 times in vain",
    ) in results
    assert ("warning", "control plane: away for 60 s") in results
    assert ("warning", "admin.address: another port: a restart is required") in results
    assert not [text for _, text in results if "not ready" in text]
