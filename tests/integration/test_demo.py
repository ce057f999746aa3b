"""`kumadp demo` as a newcomer runs it: with a terminal, without one, and checking itself."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.cli.demo.stage import DemoPorts
from kumadp.errors import ExitCode
from tests.cli.demo.test_table import state_of
from tests.support.daemon import get
from tests.support.file_lock import file_lock
from tests.support.needs import need_envoy
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for the names of Unix sockets; the demo wants the usual ports, one at a time."""
    folder = Path(tempfile.mkdtemp(prefix="d"))
    try:
        with file_lock("demo"):
            yield folder
    finally:
        shutil.rmtree(folder)


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy()), **more}


DEMO = [sys.executable, "-m", "kumadp", "demo"]


def leftovers_of(folder: Path) -> list[str]:
    """Command lines of processes that work in or for ``folder``."""
    leftovers = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                leftovers.append(" ".join(process.cmdline()))
    return leftovers


@pytest.mark.process
def test_check_passes_where_a_usual_port_is_taken_and_leaves_nothing(short_folder: Path) -> None:
    # A stranger's settings must not reach the demo.
    strange = {"KUMA_CONTROL_PLANE_URL": "https://127.0.0.1:1", "KUMA_DATAPLANE_NAME": "strange"}
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", DemoPorts().inbound)))
        done = subprocess.run(
            [*DEMO, "--check"],
            env=environment(short_folder, **strange),
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == [], done.stdout + done.stderr
    assert len(lines) == 16
    assert done.returncode == ExitCode.OK
    assert list(short_folder.iterdir()) == []
    assert leftovers_of(short_folder) == []


@pytest.mark.process
def test_check_names_what_failed_and_shows_the_log(short_folder: Path) -> None:
    missing = str(short_folder / "no-envoy")
    done = subprocess.run(
        [*DEMO, "--check"],
        env={**os.environ, "TMPDIR": str(short_folder), "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": missing},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("failed ready: ")
    assert f"exit code {ExitCode.BINARY_NOT_FOUND.value}" in done.stdout
    assert missing in done.stderr
    assert list(short_folder.iterdir()) == []


class Terminal:
    """`kumadp demo` on its own terminal."""

    def __init__(self, folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._text = ""
        self.process = subprocess.Popen(
            DEMO,
            env=environment(folder, COLUMNS="200"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def text(self) -> str:
        with contextlib.suppress(OSError):
            while data := os.read(self._ours, 65536):
                self._text += data.decode()
        return self._text

    def wait_for(self, text: str) -> None:
        def shown() -> bool:
            assert text in self.text() or self.process.poll() is None, self.text()
            return text in self.text()

        try:
            poll(shown, what=text, deadline=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None

    def last_drawing(self) -> list[str]:
        return re.split(r"\x1b\[\d+F\x1b\[J", self.text())[-1].splitlines()

    def close(self) -> None:
        if self.process.poll() is None:
            for _ in range(2):
                self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
        os.close(self._ours)


@pytest.fixture
def terminal(short_folder: Path) -> Iterator[Terminal]:
    opened = Terminal(short_folder)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.process
def test_on_a_terminal_the_table_is_refreshed_and_control_c_drains(terminal: Terminal, short_folder: Path) -> None:
    terminal.wait_for("kumadp: READY")
    envoy = poll(lambda: re.findall(r"kill -9 (\d+)", "\n".join(terminal.last_drawing())), what="a pid")
    probe = re.findall(r"http://127.0.0.1:(\d+)(/\d+/healthz)", terminal.text())[0]
    process = psutil.Process(int(envoy[0]))
    assert process.name() == "envoy"
    process.kill()
    assert get(int(probe[0]), probe[1]) == (200, "ok\n")
    poll(
        lambda: state_of("Envoy ", terminal.last_drawing()).startswith("running, 1 restart"),
        what="the restart on the screen",
    )
    assert any(line.startswith("Last exit: envoy ended with signal 9") for line in terminal.last_drawing())
    terminal.process.send_signal(signal.SIGINT)
    poll(lambda: "DRAINING" in terminal.text(), what="the drain on the screen")
    assert terminal.process.wait(30) == ExitCode.OK
    assert "nothing is left behind" in terminal.text()
    assert list(short_folder.iterdir()) == []
    assert leftovers_of(short_folder) == []


@pytest.mark.process
def test_without_a_terminal_the_table_is_printed_once_and_a_second_signal_cuts_the_drain_short(
    short_folder: Path,
) -> None:
    log = short_folder.with_suffix(".out")
    with log.open("wb") as out:
        process = subprocess.Popen(
            DEMO,
            env=environment(short_folder),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        poll(lambda: "kumadp: READY" in log.read_text(), what="the table", deadline=60)
        process.send_signal(signal.SIGTERM)
        poll(lambda: "kumadp: DRAINING" in log.read_text(), what="the drain")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ExitCode.OK
        text = log.read_text()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        log.unlink()
    assert text.count("WHAT") == 1
    assert "\x1b" not in text
    assert list(short_folder.iterdir()) == []
