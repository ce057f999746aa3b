"""Lines for systemd's journal; what it makes of them is in tests/hosts/test_systemd.py."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from kumadp.host.log import secrets
from kumadp.host.log.journal import JournalHandler, entry, fields_of
from kumadp.host.log.output import is_journal

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ENVOY = "[2026-11-24 05:05:54.236][20122][error][upstream] [source/x.cc:449] it failed"


def record(message: str, name: str = "kumadp.daemon", level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 1, message, (), None)


def test_a_child_s_line_has_its_fields() -> None:
    created = record(ENVOY, "kumadp.child.envoy")
    created.epoch = 0
    assert fields_of(created) == {
        "MESSAGE": "envoy/upstream: it failed",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "kumadp",
        "KUMADP_LOGGER": "kumadp.child.envoy",
        "KUMADP_CHILD": "envoy",
        "KUMADP_COMPONENT": "upstream",
        "KUMADP_EPOCH": "0",
    }


def test_priorities_and_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_secrets", ())
    secrets.register("a-token-of-some-length")
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    assert [fields_of(record("x", level=level))["PRIORITY"] for level in levels] == ["7", "6", "4", "3", "2"]
    assert fields_of(record("with a-token-of-some-length"))["MESSAGE"] == "daemon: with ***"
    again = record("x")
    again.repeated, again.within = 3, 60.0
    assert fields_of(again)["KUMADP_REPEATED"] == "3"


def test_what_has_several_lines_has_its_length() -> None:
    assert entry({"PRIORITY": "6", "MESSAGE": "one\ntwo"}) == b"PRIORITY=6\nMESSAGE\n\x07" + bytes(7) + b"one\ntwo\n"


def test_over_a_socket_and_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "journal"
    handler = JournalHandler(str(path))
    handler.handle(record("before it is there", level=logging.WARNING))
    assert capsys.readouterr().err == "<4>daemon: before it is there\n"
    for _ in range(2):
        # One that is started again.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(str(path))
            handler.handle(record("hello"))
            assert journal.recv(4096).startswith(b"MESSAGE=daemon: hello\nPRIORITY=6\n")
        path.unlink()
    handler.close()


def test_where_standard_error_is_the_journal() -> None:
    actual = os.fstat(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    descriptor = sys.__stderr__.fileno() if sys.__stderr__ else 2
    assert is_journal(descriptor, {"JOURNAL_STREAM": f"{actual.st_dev}:{actual.st_ino}"})
    assert not is_journal(descriptor, {"JOURNAL_STREAM": f"{actual.st_dev}:{actual.st_ino + 1}"})
    assert not is_journal(descriptor, {})
    assert not is_journal(-1, {"JOURNAL_STREAM": "1:1"})
