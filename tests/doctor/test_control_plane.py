"""The doctor's check of the control plane: a failure of each step, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kumadp.doctor import control_plane as plane
from kumadp.doctor.control_plane import clock, control_plane
from kumadp.doctor.subject import Subject
from kumadp.settings.resolve import resolve
from tests.support.ports import free_port
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def look(url: str, ca: Path | None = None, *more: str) -> list[tuple[str, str]]:
    flags = {"name": "web", "mesh": "default", "cp_address": url, "ca_cert_file": str(ca) if ca else None}
    environ = {"KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY": "true"} if "skip" in more else {}
    subject = Subject(resolve("run", flags, environ).settings, None, None, None, {})
    return [(result.state, result.text) for result in asyncio.run(control_plane(subject))]


def test_all_is_well(tmp_path: Path) -> None:
    with ScriptedControlPlane(Answer(200)) as plane:
        ca = plane.write_ca(tmp_path / "ca.crt")
        results = look(plane.url, ca)
        assert results[0][0] == "ok"
        assert "resolved, connected, TLS verified, answers (" in results[0][1]
        assert results[1][1].startswith("clock: ")
        assert look(plane.url, None, "skip")[0] == ("warning", "its certificate is not verified (--skip-verify)")


def test_a_certificate_of_another_ca(tmp_path: Path) -> None:
    with ScriptedControlPlane(Answer(200)) as plane, ScriptedControlPlane(Answer(200)) as other:
        ((state, text),) = look(plane.url, other.write_ca(tmp_path / "ca.crt"))
    assert state == "failed"
    assert "its certificate is rejected" in text


def test_unknown_names_and_closed_ports() -> None:
    ((state, text),) = look("https://no-such-name.invalid:5678")
    assert (state, "the name cannot be resolved" in text) == ("failed", True)
    port = free_port()
    results = look(f"https://127.0.0.1:{port},https://localhost:{port}")
    assert [state for state, _ in results] == ["failed", "failed"]
    assert "Connection refused" in results[0][1]


def test_an_invalid_ca(tmp_path: Path) -> None:
    assert "cannot be read" in look("https://localhost:1", tmp_path / "none")[0][1]


def test_a_server_that_does_not_speak_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                connection.sendall(b"220 mail\r\n")
                connection.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        assert "TLS failed: " in look(f"https://127.0.0.1:{port}")[0][1]
        assert "there is no HTTP answer" in look(f"http://127.0.0.1:{port}")[0][1]
        thread.join(10)


def test_a_connection_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "_STEP_TIMEOUT", 0.5)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = server.getsockname()[1]
        # Nobody accepts: once the queue is full the kernel answers no more (tcp(7)).
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        ((state, text),) = look(f"https://127.0.0.1:{port}")
    assert (state, text) == ("failed", f"127.0.0.1:{port} (127.0.0.1): no connection within 0.5 s")


def test_a_server_that_accepts_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "_STEP_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ((state, text),) = look(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert state == "failed"
    assert "connected, but there is no HTTP answer" in text


@pytest.mark.parametrize(
    ("off", "state", "expected"),
    [
        (0, "ok", "clock: same as the control plane's"),
        (30, "warning", "clock: 30 s ahead of the control plane's"),
        (-30, "warning", "clock: 30 s behind the control plane's"),
        (3600, "failed", "clock: 3600 s ahead of the control plane's"),
    ],
)
def test_clocks(off: int, state: str, expected: str) -> None:
    now = 1_800_000_000
    (result,) = clock(email.utils.formatdate(now, usegmt=True), now + off + 0.5)
    assert (result.state, result.text) == (state, expected)
    assert clock("yesterday", now)[0].state == clock("", now)[0].state == "skipped"
