"""Whether Envoy answers: what counts as silence, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin
from kumadp.envoy.hang_watch import main_thread_ticks
from kumadp.envoy.liveness import LivenessCheck, is_stopped
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PID = os.getpid()


class Admin:
    """Answers /ready as an Envoy does, or accepts and keeps silent."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nLIVE\n"
        self.silent = False
        self.end = asyncio.Event()
        self.address = TcpAdmin("127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if self.silent:
            await self.end.wait()
        else:
            writer.write(self.answer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    made = Admin()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.address = TcpAdmin("127.0.0.1", server.sockets[0].getsockname()[1])
    yield made
    made.end.set()
    server.close()
    # The handlers come to their ends.
    for _ in range(20):
        await asyncio.sleep(0)


async def feel(pulse: LivenessCheck, admin: TcpAdmin | UnixAdmin | None, times: int = 1) -> None:
    for _ in range(times):
        await pulse.check(PID, admin)


async def test_three_silences_in_a_row_are_noticed_and_an_answer_ends_them(admin: Admin) -> None:
    heard: list[str] = []
    pulse = LivenessCheck(heard.append, timeout=0.05)
    await feel(pulse, admin.address)
    admin.silent = True
    await feel(pulse, admin.address, 2)
    assert heard == []
    await feel(pulse, admin.address)
    assert heard == ["Envoy does not serve: no answer from its admin"]
    admin.silent = False
    await feel(pulse, admin.address)
    assert heard[1:] == [""]


async def test_one_silence_is_none(admin: Admin) -> None:
    heard: list[str] = []
    pulse = LivenessCheck(heard.append, timeout=0.05)
    for silent in (True, True, False) * 3:
        admin.silent = silent
        await feel(pulse, admin.address)
    assert heard == []


async def test_what_envoy_says_of_itself_counts(admin: Admin) -> None:
    heard: list[str] = []
    pulse = LivenessCheck(heard.append)
    admin.answer = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\nDRAINING\n"
    await feel(pulse, admin.address, 3)
    assert heard == ["Envoy does not serve: it is DRAINING"]


async def test_a_refused_connection_and_a_missing_socket_are_silence(tmp_path: Path, admin: Admin) -> None:
    for address in (TcpAdmin("127.0.0.1", 1), UnixAdmin(str(tmp_path / "admin.sock"))):
        heard: list[str] = []
        await feel(LivenessCheck(heard.append), address, 3)
        assert len(heard) == 1
        assert heard[0].startswith("Envoy does not serve: no answer from its admin (")


async def test_want_of_descriptors_says_nothing_of_envoy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_connection", fail)
    heard: list[str] = []
    await feel(LivenessCheck(heard.append), TcpAdmin("127.0.0.1", 1), 5)
    assert heard == []


async def test_another_process_begins_anew(admin: Admin) -> None:
    heard: list[str] = []
    pulse = LivenessCheck(heard.append, timeout=0.05)
    admin.silent = True
    await feel(pulse, admin.address, 2)
    await pulse.check(PID + 1, admin.address)
    assert heard == []


async def test_one_that_is_stopped_is_seen_without_an_admin() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:  # noqa: ASYNC220
        try:
            process.send_signal(signal.SIGSTOP)
            poll(lambda: is_stopped(process.pid), what="the stop")
            heard: list[str] = []
            pulse = LivenessCheck(heard.append)
            for _ in range(3):
                await pulse.check(process.pid, None)
            assert heard == ["Envoy does not serve: it is stopped (SIGSTOP)"]
            process.send_signal(signal.SIGCONT)
            poll(lambda: not is_stopped(process.pid), what="that it runs")
            await pulse.check(process.pid, None)
            assert heard[1:] == [""]
        finally:
            process.kill()


def test_a_process_may_have_a_name_of_any_bytes() -> None:
    rename = "open('/proc/self/comm', 'wb').write(b'\\xff'); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE) as process:
        try:
            poll(lambda: b"\xff" in Path(f"/proc/{process.pid}/stat").read_bytes(), what="the name")
            assert not is_stopped(process.pid)
            assert main_thread_ticks(process.pid) is not None
        finally:
            process.kill()


def test_silence_is_noticed_within_ten_seconds() -> None:
    pulse = LivenessCheck(lambda _why: None)
    # With a second to spare for a busy host.
    assert pulse.period + pulse.failures * pulse.timeout <= 9.0
