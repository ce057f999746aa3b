"""Commands that send one request to a running kumadp: what they send and print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

from kumadp.cli import log_level, reexec, reload, remote
from kumadp.errors import CommandRefused, UsageError
from tests.support.command import invoke

if TYPE_CHECKING:
    from kumadp.daemon.instances import Running


class Instance:
    """A running data plane."""

    name, path, uid = "web", Path("/run/web.control"), 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Command and query of each request."""
    requests: list[tuple[str, str]] = []

    def send(_running: Running, command: str, _timeout: float, query: str = "") -> dict[str, Any]:
        requests.append((command, query))
        return {"said": "done\nand more", "count": 1}

    for module in (log_level, reexec, reload):
        monkeypatch.setattr(module, "send_command", send)
        monkeypatch.setattr(module, "only_running", lambda _name: Instance())
    return requests


def test_reload(sent: list[tuple[str, str]]) -> None:
    assert invoke(reload.reload) == "web: done\\nand more\n"
    assert sent == [("reload", "")]


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        (("debug",), {"level": ["debug"]}),
        (
            ("debug", "relay=info", "envoy.upstream=trace"),
            {"level": ["debug"], "relay": ["info"], "envoy.upstream": ["trace"]},
        ),
        (("--reset",), {"reset": [""]}),
    ],
)
def test_log_level(sent: list[tuple[str, str]], arguments: tuple[str, ...], query: dict[str, list[str]]) -> None:
    invoke(log_level.log_level, *arguments)
    ((command, text),) = sent
    assert (command, parse_qs(text, keep_blank_values=True)) == ("log-level", query)


@pytest.mark.parametrize("arguments", [(), ("debug", "--reset")])
def test_a_log_level_or_reset(sent: list[tuple[str, str]], arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="give levels, or --reset"):
        invoke(log_level.log_level, *arguments)
    assert sent == []


def test_reexec_waits_for_the_next_program(sent: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [
        OSError("gone"),
        {"reexec": {"count": 1}},
        {"reexec": {"count": 2}, "version": "9.9", "pid": 7},
    ]

    def status(*_arguments: object) -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        result: dict[str, Any] = answer
        return result

    monkeypatch.setattr(reexec, "query_status", status)
    assert invoke(reexec.reexec) == "web: kumadp 9.9 is running (pid 7)\n"
    assert sent == [("reexec", "")]


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        ({"reexec": {"count": 1, "failed": "ImportError: x"}}, "web: reexec: ImportError: x"),
        ({"reexec": {"count": 1}}, "web: reexec: not done within 100ms"),
    ],
)
def test_reexec_that_fails(
    sent: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], refusal: str
) -> None:
    monkeypatch.setattr(reexec, "query_status", lambda *_arguments: status)
    with pytest.raises(CommandRefused, match=refusal):
        invoke(reexec.reexec, "--timeout=100ms")
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        ((404, {}), "web: reload: the running kumadp does not support it"),
        ((409, {"why": "no\nway"}), r"web: reload: no\\nway"),
        ((500, {}), "web: reload: answered with 500"),
        (ConnectionRefusedError(111, "Connection refused"), "web: reload: no answer: Connection refused"),
    ],
)
def test_an_answer_that_is_not_ok(monkeypatch: pytest.MonkeyPatch, answer: Any, refusal: str) -> None:
    def answering(*_arguments: object) -> Any:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(remote, "send_request", answering)
    with pytest.raises(CommandRefused, match=refusal):
        remote.send_command(Instance(), "reload", 1.0)  # type: ignore[arg-type]


def test_the_target_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[str] = []

    def answering(_path: Path, method: str, target: str, *_others: object) -> tuple[int, dict[str, Any]]:
        targets.append(f"{method} {target}")
        return 200, {"said": "ok"}

    monkeypatch.setattr(remote, "send_request", answering)
    remote.send_command(Instance(), "reload", 1.0)  # type: ignore[arg-type]
    remote.send_command(Instance(), "log-level", 1.0, "level=debug")  # type: ignore[arg-type]
    assert targets == ["POST /reload", "POST /log-level?level=debug"]


def test_texts_of_answers() -> None:
    assert remote.message_of({}) == "done"
    assert remote.reason(OSError(111, "Connection refused")) == "Connection refused"
    assert remote.reason(TimeoutError()) == "TimeoutError"
