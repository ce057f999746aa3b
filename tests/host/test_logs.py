"""The log: lines for people and for machines, no secrets, never in anybody's way."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kumadp.errors import SettingsError
from kumadp.host.environment import child_environment, on_kubernetes
from kumadp.host.facts import has_ipv6, system_ca_path
from kumadp.host.log import secrets
from kumadp.host.log.line_formats import JsonFormatter, TextFormatter
from kumadp.host.log.output import LogOutput, setup_logging

log = logging.getLogger("kumadp.test")
SECRET = "eyJhbGciOiJSUzI1NiJ9.e30.signature"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_secrets", ())


def output(path: Path, *, level: str = "info", fmt: str = "text", files: int = 3, age: int = 30) -> LogOutput:
    return setup_logging(level=level, fmt=fmt, output_path=str(path), max_files=files, max_size_mb=1, max_age_days=age)


def record(message: str, name: str = "kumadp.daemon", *, exc_info: bool = False) -> logging.LogRecord:
    info = None
    if exc_info:
        try:
            raise ValueError(f"about {SECRET}")
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord(name, logging.WARNING, "", 1, message, (), info)


def test_text_is_time_level_part_and_message() -> None:
    made = record("waiting: bootstrap")
    made.created, made.msecs = 1764000000.25, 250
    assert TextFormatter().format(made) == "2025-11-24T16:00:00.250Z WARNING daemon: waiting: bootstrap"


def test_json_is_one_object_a_line_with_a_traceback_too() -> None:
    line = JsonFormatter().format(record("two\nlines", exc_info=True))
    assert len(line.splitlines()) == 1
    reported = json.loads(line)
    assert (reported["level"], reported["logger"], reported["message"]) == ("warning", "kumadp.daemon", "two\nlines")
    assert "ValueError" in reported["traceback"]


def test_a_line_of_envoy_s_is_taken_apart() -> None:
    line = "[2026-11-24 05:05:54.236][20122][critical][main] [source/server/server.cc:449] it failed"
    reported = json.loads(JsonFormatter().format(record(line, "kumadp.child.envoy")))
    assert (reported["child"], reported["level"], reported["component"]) == ("envoy", "critical", "main")
    assert reported["message"] == "it failed"
    plain = json.loads(JsonFormatter().format(record("not Envoy's form", "kumadp.child.envoy")))
    assert plain["message"] == "not Envoy's form"
    later = record(line, "kumadp.child.envoy")
    later.epoch = 2
    assert json.loads(JsonFormatter().format(later))["epoch"] == 2
    assert TextFormatter().format(later).endswith("Z CRITICAL envoy@2/main: it failed")


def test_lines_of_children_go_by_their_own_level(tmp_path: Path) -> None:
    made = output(tmp_path / "log", level="error")
    for child, line in (
        ("envoy", "[2026-11-24 05:05:54.236][1][debug][main] [a.cc:1] envoy has an own level"),
        ("coredns", "not wanted"),
    ):
        logging.getLogger(f"kumadp.child.{child}").info("%s", line)
    logging.getLogger("kumadp.child.coredns").error("wanted")
    made.close()
    assert [line.split(": ")[1] for line in (tmp_path / "log").read_text().splitlines()] == [
        "envoy has an own level",
        "wanted",
    ]
    made = output(tmp_path / "off", level="off")
    logging.getLogger("kumadp.child.envoy").info("anything")
    made.close()
    assert (tmp_path / "off").read_text() == ""


def test_what_repeats_is_reported_with_a_count(tmp_path: Path) -> None:
    made = output(tmp_path / "log", fmt="json")
    for number in range(40):
        log.warning("no bootstrap: refused")
        logging.getLogger("kumadp.child.coredns").error("plugin/errors: udp 127.0.0.1:%d: timeout", number)
        logging.getLogger("kumadp.child.envoy").info("GET / 200")
    made.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    reported = [(line["message"], line.get("repeated")) for line in lines if "GET" not in line["message"]]
    assert reported == [
        ("no bootstrap: refused", None),
        ("udp 127.0.0.1:0: timeout", None),
        ("no bootstrap: refused", 39),
        ("udp 127.0.0.1:39: timeout", 39),
    ]
    assert len(lines) - len(reported) == 40, "an access log is no repetition"


@pytest.mark.parametrize(("terminal", "form"), [(True, "text"), (False, "json")])
def test_the_form_goes_by_where_the_lines_go(monkeypatch: pytest.MonkeyPatch, terminal: bool, form: str) -> None:
    read, write = pty.openpty() if terminal else os.pipe()
    with os.fdopen(write, "w", buffering=1) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        made = setup_logging(level="info", fmt="auto", output_path="", max_files=1, max_size_mb=1, max_age_days=1)
        log.info("hello")
        made.close()
        line = os.read(read, 4096).decode()
    os.close(read)
    assert line.startswith("{") is (form == "json")
    assert "hello" in line


def test_a_line_of_coredns_s_is_taken_apart() -> None:
    line = "plugin/errors: 2 backend.mesh. A: read udp 127.0.0.1:1->127.0.0.1:2: i/o timeout"
    reported = json.loads(JsonFormatter().format(record(line, "kumadp.child.coredns")))
    assert (reported["child"], reported["component"]) == ("coredns", "errors")
    assert reported["message"].startswith("2 backend.mesh. A: ")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_secrets_are_masked_everywhere(formatter: logging.Formatter) -> None:
    secrets.register(SECRET)
    line = formatter.format(record(f"the token is {SECRET}.", exc_info=True))
    assert SECRET not in line
    assert line.count("***") == 2


def test_short_words_are_no_secrets() -> None:
    secrets.register("a\nshort\nlong enough to be one")
    assert secrets.redact("a short text, long enough to be one") == "a short text, ***"


def test_a_flush_writes_counts_of_repeats_so_far(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs = output(path)
    for _ in range(3):
        log.warning("again")
    assert logs.flush()
    assert [line.partition("test: ")[2] for line in path.read_text().splitlines()] == [
        "again",
        "again (2 more like this in 0 s)",
    ]
    logs.close()
    assert len(path.read_text().splitlines()) == 2


def test_levels_and_flush(tmp_path: Path) -> None:
    made = output(tmp_path / "log", level="warning")
    log.info("too quiet")
    for number in range(1000):
        log.warning("line %d", number)
    made.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 1000
    assert lines[-1].endswith("WARNING test: line 999")


def test_off_is_off(tmp_path: Path) -> None:
    made = output(tmp_path / "log", level="off")
    log.error("nothing")
    made.close()
    assert not (tmp_path / "log").exists() or (tmp_path / "log").read_text() == ""


def test_the_file_rotates_by_size_and_old_ones_go_by_number_and_age(tmp_path: Path) -> None:
    path = tmp_path / "log"
    ancient = tmp_path / "log.2"
    ancient.write_text("old")
    os.utime(ancient, (time.time() - 40 * 86400,) * 2)
    made = output(path, files=3)
    for number in range(45):
        log.info("%d %s", number, "x" * 100_000)
    made.close()
    kept = sorted(actual.name for actual in tmp_path.iterdir())
    assert kept == ["log", "log.1", "log.2", "log.3"]
    assert all(actual.read_text() != "old" for actual in tmp_path.iterdir())
    assert all(actual.stat().st_size <= 1024 * 1024 for actual in tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_reported_before_anything_starts(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(SettingsError, match="--log-output-path"):
            output(path)


# Logs into a pipe that nobody reads, twice as much as the queue holds, then ends.
STUCK = """
import logging, os
from kumadp.host.log.output import QUEUE_LENGTH, setup_logging
made = setup_logging(level="info", fmt="text", output_path="", max_files=1, max_size_mb=1, max_age_days=1)
log = logging.getLogger("kumadp.test")
for number in range(QUEUE_LENGTH * 2):
    log.info("a line of some length, number %d", number)
print(made.dropped, flush=True)
made.close()
print("closed", flush=True)
os._exit(0)
"""


def test_a_stuck_output_costs_lines_and_nothing_else() -> None:
    read, write = os.pipe()
    try:
        process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=write, text=True)
        os.close(write)
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        assert process.stdout.readline() == "closed\n"
        assert process.wait(30) == 0
        process.stdout.close()
    finally:
        os.close(read)


def test_children_get_no_secrets_and_nothing_meant_for_us() -> None:
    ours = {
        "NOTIFY_SOCKET": "x",
        "WATCHDOG_PID": "1",
        "KUMADP_TEST": "x",
        "CREDENTIALS_DIRECTORY": "x",
        "TOKEN": SECRET,
    }
    theirs = {"PATH": "/bin", "HOME": "/root", "LANG": "C"}
    assert child_environment({**ours, **theirs}, frozenset({"TOKEN"})) == theirs


@pytest.mark.parametrize(
    ("environ", "pod"),
    [
        ({}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        ({"POD_NAME": "a"}, False),
        ({"POD_NAME": "a", "POD_NAMESPACE": "b"}, True),
        ({"KUBERNETES_SERVICE_HOST": ""}, False),
    ],
)
def test_a_pod_is_known_by_its_variables(environ: dict[str, str], pod: bool) -> None:
    assert on_kubernetes(environ) is pod


def test_facts_of_this_host_have_their_types() -> None:
    assert isinstance(has_ipv6(), bool)
    assert system_ca_path() == "" or system_ca_path().startswith("/")


def test_a_flush_waits_for_what_is_queued_and_for_no_output_that_is_stuck(tmp_path: Path) -> None:
    logs = output(tmp_path / "log")
    for number in range(500):
        log.info("line %d", number)
    assert logs.flush()
    assert len((tmp_path / "log").read_text().splitlines()) == 500
    log.info("after")
    logs.close()
    assert (tmp_path / "log").read_text().endswith("after\n")
    os.mkfifo(tmp_path / "stuck")
    reader = os.open(tmp_path / "stuck", os.O_RDWR)
    stuck = output(tmp_path / "stuck")
    for number in range(2000):
        log.info("%d %s", number, "x" * 100)
    assert not stuck.flush(0.05)
    os.set_blocking(reader, False)
    while not stuck.flush(0.01):
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 65536)
    stuck.close()
    os.close(reader)


def test_lines_that_the_output_refuses_are_counted_and_reported(tmp_path: Path) -> None:
    made = output(Path("/dev/full"))
    target = made._target
    assert isinstance(target, logging.FileHandler)
    try:
        for number in range(5):
            log.warning("line %d", number)
        assert made.flush()
        assert made.dropped == 5
        assert made.status()["dropped"] == 5
        with (tmp_path / "log").open("w") as later:
            full = target.stream
            assert full is not None
            target.stream = later
            with contextlib.suppress(OSError):
                full.close()
            log.warning("there is room")
            assert made.flush()
            logged = (tmp_path / "log").read_text()
            assert "there is room" in logged
            assert logged.count("5 lines were lost: what the log is written to was stuck or full") == 1
            target.stream = Path(os.devnull).open("w")  # noqa: SIM115 - the handler closes it
    finally:
        made.close()


def test_a_fifo_that_nobody_reads_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SettingsError, match="--log-output-path"):
        output(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    made = output(tmp_path / "fifo")
    assert isinstance(made._target, logging.handlers.RotatingFileHandler)
    assert made._target.maxBytes == 0, "logging of Python 3.13 cannot rotate it, and would lose every line"
    log.warning("received")
    assert made.flush()
    assert b"received" in os.read(reader, 1000)
    assert made.dropped == 0
    made.close()
    os.close(reader)
