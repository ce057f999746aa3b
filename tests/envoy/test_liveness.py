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
from kumadp.envoy import liveness
from kumadp.envoy.liveness import LivenessCheck, is_stopped
from kumadp.process.progress import main_thread_ticks
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PID = os.getpid()
TIMEOUT = 0.05
SILENT = "Envoy does not serve: no answer from its admin"


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


async def check_times(check: LivenessCheck, admin: TcpAdmin | UnixAdmin | None, times: int = 1) -> None:
    for _ in range(times):
        await check.check(PID, admin)


class Work:
    """Processor time of the main thread of any process: ``each`` seconds more at each reading."""

    def __init__(self) -> None:
        self.each = self.used = 0.0

    def read(self, _pid: int, _otherwise: float) -> float:
        self.used += self.each
        return self.used


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    made = Work()
    monkeypatch.setattr(liveness, "used_or", made.read)
    return made


@pytest.mark.usefixtures("work")
async def test_three_failures_in_a_row_are_reported_until_an_answer(admin: Admin) -> None:
    reports: list[str] = []
    check = LivenessCheck(reports.append, timeout=TIMEOUT)
    await check_times(check, admin.address)
    admin.silent = True
    await check_times(check, admin.address, 2)
    assert reports == []
    await check_times(check, admin.address)
    assert reports == [SILENT]
    admin.silent = False
    await check_times(check, admin.address)
    assert reports[1:] == [""]


async def test_an_envoy_whose_main_thread_is_busy_serves_until_it_stops_working(admin: Admin, work: Work) -> None:
    reports: list[str] = []
    check = LivenessCheck(reports.append, timeout=TIMEOUT)
    admin.silent, work.each = True, TIMEOUT
    await check_times(check, admin.address, 10)
    assert reports == []
    work.each = 0.0
    # Three times the timeout without progress.
    await check_times(check, admin.address, 5)
    assert set(reports) == {SILENT}
    # Then only an answer shows that it serves.
    work.each = TIMEOUT
    await check_times(check, admin.address, 2)
    assert set(reports) == {SILENT}
    admin.silent = False
    await check_times(check, admin.address)
    assert reports[-1] == ""


async def test_a_busy_envoy_that_is_silent_for_too_long_does_not_serve(
    admin: Admin, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "BUSY_AT_MOST", 5 * TIMEOUT)
    reports: list[str] = []
    admin.silent, work.each = True, TIMEOUT
    await check_times(LivenessCheck(reports.append, timeout=TIMEOUT), admin.address, 6)
    assert set(reports) == {SILENT}


async def test_only_silence_may_mean_that_it_is_busy(admin: Admin, work: Work) -> None:
    work.each = TIMEOUT
    admin.answer = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\nDRAINING\n"
    for address in (TcpAdmin("127.0.0.1", 1), admin.address):
        reports: list[str] = []
        await check_times(LivenessCheck(reports.append, timeout=TIMEOUT), address, 3)
        assert len(reports) == 1


@pytest.mark.usefixtures("work")
async def test_without_an_admin_failures_do_not_become_more(admin: Admin) -> None:
    """A new Envoy takes the admin, with requests that wait there, and may need many seconds until it is LIVE."""
    reports: list[str] = []
    check = LivenessCheck(reports.append, timeout=TIMEOUT)
    admin.silent = True
    await check_times(check, admin.address, 2)
    await check_times(check, None, 10)
    assert reports == []
    # What was reported stays so: nothing shows that it serves.
    await check_times(check, admin.address)
    await check_times(check, None)
    assert reports == [SILENT, SILENT]


async def test_a_single_failure_is_not_reported(admin: Admin) -> None:
    reports: list[str] = []
    check = LivenessCheck(reports.append, timeout=TIMEOUT)
    for silent in (True, True, False) * 3:
        admin.silent = silent
        await check_times(check, admin.address)
    assert reports == []


async def test_a_state_other_than_live_is_a_failure(admin: Admin) -> None:
    reports: list[str] = []
    check = LivenessCheck(reports.append)
    admin.answer = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\nDRAINING\n"
    await check_times(check, admin.address, 3)
    assert reports == ["Envoy does not serve: it is DRAINING"]


async def test_a_refused_connection_and_a_missing_socket_are_failures(tmp_path: Path, admin: Admin) -> None:
    for address in (TcpAdmin("127.0.0.1", 1), UnixAdmin(str(tmp_path / "admin.sock"))):
        reports: list[str] = []
        await check_times(LivenessCheck(reports.append), address, 3)
        assert len(reports) == 1
        assert reports[0].startswith("Envoy does not serve: no answer from its admin (")


async def test_a_lack_of_descriptors_is_no_failure_of_envoy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_connection", fail)
    reports: list[str] = []
    await check_times(LivenessCheck(reports.append), TcpAdmin("127.0.0.1", 1), 5)
    assert reports == []


async def test_failures_are_counted_again_for_another_process(admin: Admin) -> None:
    reports: list[str] = []
    check = LivenessCheck(reports.append, timeout=0.05)
    admin.silent = True
    await check_times(check, admin.address, 2)
    await check.check(PID + 1, admin.address)
    assert reports == []


async def test_a_stopped_process_is_detected_without_an_admin() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:  # noqa: ASYNC220
        try:
            process.send_signal(signal.SIGSTOP)
            poll(lambda: is_stopped(process.pid), what="the stop")
            reports: list[str] = []
            check = LivenessCheck(reports.append)
            for _ in range(3):
                await check.check(process.pid, None)
            assert reports == ["Envoy does not serve: it is stopped (SIGSTOP)"]
            process.send_signal(signal.SIGCONT)
            poll(lambda: not is_stopped(process.pid), what="that it runs")
            await check.check(process.pid, None)
            assert reports[1:] == [""]
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


def test_silence_is_reported_within_ten_seconds() -> None:
    check = LivenessCheck(lambda _why: None)
    # With a second to spare for a busy host.
    assert check.period + check.failures * check.timeout <= 9.0
