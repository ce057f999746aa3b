"""`kumadp demo` as a newcomer runs it: with a terminal, without one, and checking itself."""

from __future__ import annotations

import contextlib
import dataclasses
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
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rrset
import psutil
import pytest

from kumadp.cli.demo.dns import DnsAnswer, DnsAnswerError, decode_answer
from kumadp.cli.demo.stage import DemoPorts, write_mesh
from kumadp.cli.demo.table import Scene, Screen, child_state, headline, render
from kumadp.dns.message import encode_query
from kumadp.errors import ExitCode
from kumadp.resources.load import load_resource_file
from tests.support.daemon import get
from tests.support.file_lock import file_lock
from tests.support.needs import need_envoy
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNING = {"state": "RUNNING", "pid": 77, "restarts": 0, "last_exit": "", "reason": ""}


def status(**changes: Any) -> dict[str, Any]:
    return {"phase": "READY", "since": 1000.0, "pid": 5, "ready": True, "children": {"envoy": RUNNING}, **changes}


def scene(folder: Path = Path("/demo")) -> Scene:
    return Scene(DemoPorts(), folder / "mesh", 5, workload_runs=True)


def state_of(what: str, lines: list[str]) -> str:
    line = next(line for line in lines if line.startswith(what))
    return re.split(r"\s{2,}", line)[2]


class TestTable:
    def test_traffic_is_down_while_envoy_is_and_probes_are_not(self) -> None:
        dead = {**RUNNING, "state": "BACKOFF", "pid": None, "restarts": 1, "last_exit": "signal 9 (KILL)"}
        lines = render(scene(), status(ready=False, children={"envoy": dead}), 1000.0)
        assert state_of("inbound", lines) == "down"
        assert state_of("virtual probes", lines) == "up"
        assert state_of("Envoy ", lines) == "backoff, 1 restart"
        assert "Last exit: signal 9 (KILL)" in lines

    def test_a_workload_that_died_is_down(self) -> None:
        lines = render(dataclasses.replace(scene(), workload_runs=False), status(), 1000.0)
        assert state_of("workload web", lines) == "down"
        assert state_of("inbound", lines) == "up"

    def test_no_text_makes_the_table_wider(self) -> None:
        child = {**RUNNING, "restarts": 2, "last_exit": "ended, its last line: " + "x" * 500}
        wide = [line for line in render(scene(), status(children={"envoy": child}), 1000.0) if len(line) > 160]
        assert wide == [f"Last exit: {child['last_exit']}"]

    def test_each_row_has_a_command_that_names_its_port(self) -> None:
        lines = render(scene(), status(), 1000.0)
        ports = DemoPorts()
        for what, port in (("inbound", ports.inbound), ("DNS", ports.dns), ("readiness", ports.readiness)):
            line = next(line for line in lines if line.startswith(what))
            assert str(port) in re.split(r"\s{2,}", line)[3]

    def test_the_drain_counts_down_from_its_start_and_never_below_zero(self) -> None:
        draining = status(phase="DRAINING", ready=False)
        assert "5 s left" in headline(scene(), draining, 1000.0)
        assert "2 s left" in headline(scene(), draining, 1003.5)
        assert "0 s left" in headline(scene(), draining, 1099.0)

    def test_traffic_drains_while_the_demo_does(self) -> None:
        lines = render(scene(), status(ready=False, phase="DRAINING"), 1000.0)
        assert state_of("inbound", lines) == "draining"
        assert state_of("virtual probes", lines) == "up"

    def test_a_part_that_failed_permanently_is_shown_with_its_reason(self) -> None:
        lines = render(scene(), status(fatal={"standalone": "the folder is gone"}), 1000.0)
        assert any("standalone" in line and "the folder is gone" in line for line in lines)
        assert not any("FAILED" in line for line in render(scene(), status(), 1000.0))

    def test_a_child_that_is_not_there_is_down(self) -> None:
        assert child_state({}) == "down"

    def test_unchanged_rows_are_not_written_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        screen = Screen(sys.stdout)
        screen.show(["one", "two"])
        screen.show(["one", "two"])
        assert capsys.readouterr().out == "one\ntwo\n"
        screen.show(["three"])
        assert capsys.readouterr().out == "\x1b[2F\x1b[Jthree\n"

    def test_rows_below_the_screen_are_omitted(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((10, 4)))
        screen = Screen(sys.stdout)
        screen.show(["one", "x" * 15, "three", "four"])
        assert capsys.readouterr().out == f"one\n{'x' * 15}\n"
        screen.show(["one"])
        assert capsys.readouterr().out == "\x1b[3F\x1b[Jone\n"


class TestDns:
    def test_the_query_equals_that_of_dnspython(self) -> None:
        question = dns.message.from_wire(encode_query("backend.mesh", number=7))
        assert question.id == 7
        assert [str(record) for record in question.question] == ["backend.mesh. IN A"]

    def test_addresses_and_code_of_an_answer(self) -> None:
        question = dns.message.from_wire(encode_query("backend.mesh", number=7))
        answer = dns.message.make_response(question)
        answer.answer.append(dns.rrset.from_text("backend.mesh.", 60, "IN", "A", "127.0.0.1", "127.0.0.3"))
        decoded = decode_answer(7, answer.to_wire())
        assert DnsAnswer(decoded.code, tuple(sorted(decoded.addresses))) == DnsAnswer(0, ("127.0.0.1", "127.0.0.3"))

    @pytest.mark.parametrize(
        "message", [b"", b"\x00\x07", encode_query("backend.mesh", number=7), b"\x00\x07\x80\x00\x00\x09"]
    )
    def test_a_malformed_answer_is_an_error(self, message: bytes) -> None:
        with pytest.raises(DnsAnswerError):
            decode_answer(7, message)

    def test_an_answer_to_another_question_is_an_error(self) -> None:
        answer = dns.message.make_response(dns.message.from_wire(encode_query("backend.mesh", number=7)))
        with pytest.raises(DnsAnswerError):
            decode_answer(8, answer.to_wire())


def test_a_taken_port_is_replaced_and_all_differ() -> None:
    with file_lock("demo"), contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", DemoPorts().inbound)))
        with contextlib.suppress(OSError):
            udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", DemoPorts().dns))
        chosen = DemoPorts.choose()
    assert chosen.inbound != DemoPorts().inbound
    assert chosen.dns != DemoPorts().dns
    numbers = [getattr(chosen, name) for name in DemoPorts.__dataclass_fields__]
    assert len(set(numbers)) == len(numbers)


def test_the_dataplanes_of_the_demo_are_right(tmp_path: Path) -> None:
    write_mesh(tmp_path / "mesh", DemoPorts())
    names = [load_resource_file(path).name for path in sorted((tmp_path / "mesh").iterdir())]
    assert names == ["backend", "web"]


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


def left_behind(folder: Path) -> list[str]:
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
    assert left_behind(short_folder) == []


@pytest.mark.process
def test_check_says_what_failed_and_shows_the_log(short_folder: Path) -> None:
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
    assert left_behind(short_folder) == []


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
