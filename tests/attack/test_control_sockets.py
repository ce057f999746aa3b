"""An answer on a control socket may be of another user, slow, endless or nonsense: the commands end with a reason."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.cli import doctor, remote
from kumadp.core.status import Status
from kumadp.daemon.control_client import query_status, send_request
from kumadp.daemon.instances import Running, Search
from kumadp.errors import CommandRefused
from kumadp.host.net.socket_paths import socket_name
from kumadp.host.net.unix_http import LARGEST_BODY, UntrustedSocket
from tests.support.command import ROOT, kumadp
from tests.support.needs import missing
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STRANGER = 54321
COMMANDS = [["status"], ["reload"], ["reexec"], ["log-level", "debug"], ["wait", "--name=web", "--once"]]
LIMIT = 1 << 30


@pytest.fixture
def runtime() -> Iterator[Path]:
    """An XDG_RUNTIME_DIR, short enough for sockets, that other users can pass through."""
    with tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "kumadp").mkdir(mode=0o700)
        yield Path(folder)


def answer(body: bytes, code: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (code, len(body)) + body


def status(**changes: object) -> bytes:
    return answer(json.dumps({**Status("web", "standalone").snapshot(), **changes}).encode())


@contextlib.contextmanager
def serving(path: Path, act: Callable[[socket.socket], object]) -> Iterator[list[bytes]]:
    """Open a socket of this user; ``act`` answers each connection after its request. Yield the requests."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer_once(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                if question := client.recv(65536):
                    requests.append(question)
                    act(client)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer_once, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield requests
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def strange_server(path: Path) -> Iterator[Path]:
    """A process of another user that listens there, reports that all is well, and writes each request to a file."""
    if os.geteuid() != 0:
        missing("needs root, to be two users")
    note = path.with_suffix(".requested")
    report = status(phase="READY", ready=True)
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        try:
            Path("/proc/self/comm").write_text("kuma-dp")
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
                path.chmod(0o666)
                server.listen()
                path.with_suffix(".up").touch()
                while True:
                    client, _ = server.accept()
                    if question := client.recv(65536):
                        with note.open("ab") as file:
                            file.write(question)
                        client.sendall(report)
                    client.close()
        finally:
            os._exit(1)
    try:
        poll(path.with_suffix(".up").exists, what="the stranger's server")
        yield note
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
def test_a_folder_of_another_user_is_not_believed(runtime: Path, command: list[str]) -> None:
    folder = runtime / "kumadp"
    if os.geteuid() == 0:
        os.chown(folder, STRANGER, STRANGER)
    with strange_server(folder / socket_name("web")) as note:
        done = kumadp(*command, environment={"XDG_RUNTIME_DIR": str(runtime)})
    assert done.returncode == (75 if command[0] == "wait" else 79), done.stdout
    assert f"{folder} belongs to uid {STRANGER}" in done.stderr
    assert not note.exists()


@pytest.mark.parametrize("kind", ["file", "process", "open", "link", "link to the folder"])
def test_nothing_is_sent_where_anything_is_not_ours(runtime: Path, kind: str) -> None:
    theirs, ours = runtime / "theirs", runtime / "kumadp"
    theirs.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, STRANGER, STRANGER)
    with strange_server(theirs / "web.control") as note:
        path = ours / "web.control"
        if kind == "link":
            path.symlink_to(theirs / "web.control")
        elif kind == "link to the folder":
            (runtime / "link").symlink_to(theirs)
            path = runtime / "link" / "web.control"
        else:
            (theirs / "web.control").rename(path)
        if kind == "process":
            os.chown(path, 0, 0)
        if kind == "open":
            ours.chmod(0o777)
        for uid in (None, STRANGER) if kind != "file" else (None,):
            with pytest.raises(OSError, match=r"belongs to|served by|written by others|not a socket|directory"):
                send_request(path, "POST", "/reload", 5, uid)
        assert not note.exists()
        done = kumadp("reload", environment={"XDG_RUNTIME_DIR": str(runtime)})
    assert done.returncode == 79
    assert not note.exists()


def test_root_acts_on_another_user_s_data_plane_only_by_name(runtime: Path) -> None:
    """Listed by the kernel or not: a name alone does not make it ours."""
    folder = runtime / "kumadp"
    if os.geteuid() == 0:
        os.chown(folder, STRANGER, STRANGER)
    name = f"strange{os.getpid()}"
    with strange_server(folder / socket_name(name)) as note:
        for arguments in (
            ("reload", f"--name={name}"),
            ("status", f"--name={name}"),
            ("wait", "--once", f"--name={name}"),
        ):
            done = kumadp(*arguments, environment={"XDG_RUNTIME_DIR": ""}, alone=False)
            assert done.returncode == (75 if "wait" in arguments else 79)
            assert f"{name} of uid {STRANGER}" in done.stderr
    assert not note.exists()


def drip(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        client.sendall(b"x")
        threading.Event().wait(0.05)


def drip_body(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        client.sendall(b" ")
        threading.Event().wait(0.05)


def drip_continues(client: socket.socket) -> None:
    while True:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        threading.Event().wait(0.05)


def flood(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        client.sendall(b"[" * 65536)


def flood_head(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        client.sendall(b"x: y\r\n" * 10000)


def flood_continues(client: socket.socket) -> None:
    while True:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def sending(data: bytes) -> Callable[[socket.socket], object]:
    return lambda client: client.sendall(data)


ENDLESS: list[Callable[[socket.socket], object]] = [
    *(drip, drip_body, drip_continues, flood, flood_head, flood_continues),
    lambda _client: threading.Event().wait(60),
]
DEEP = 100_000
WHOLE = Status("web", "standalone").snapshot()
NONSENSE = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown version": b"HTTP/9.9 200 OK\r\n\r\n{}",
    "no code": b"HTTP/1.1 abc OK\r\n\r\n{}",
    "a head without an end": b"HTTP/1.1 200 OK\r\ncontent-",
    "a length that is too much": b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n{}",
    "a length that is not there": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}",
    "bad chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}",
    "no JSON": answer(b"hello"),
    "no text": answer(b"\xff\xfe\x00"),
    "a list": answer(b"[]"),
    "a number": answer(b"7"),
    "null": answer(b"null"),
    "deep lists": answer(b"[" * DEEP + b"]" * DEEP),
    "deep objects": answer(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "rather deep objects": answer(b'{"a":' * 300 + b"1" + b"}" * 300),
    "depth in what is a status": status(dynconf=json.loads("[" * 300 + "]" * 300)),
    "an empty object": answer(b"{}"),
    "a huge number": answer(b'{"pid":1' + b"0" * 5000 + b"}"),
    "not found": answer(b"{}", 404),
    "not found, no JSON": answer(b"no", 404),
    **{
        f"{field} as {value!r}": status(**{field: value})
        for field, value in [
            ("name", 7),
            ("pid", "1"),
            ("since", 1e300),
            ("started", None),
            ("ready", "yes"),
            ("children", []),
            ("children", {"envoy": {}}),
            ("children", {"envoy": None}),
            ("reasons", "none"),
            ("reasons", [1]),
            ("fatal", {"a": 1}),
            ("log", 1),
            ("log", {"changed": True, "components": []}),
            ("relay", {}),
            ("relay", "x"),
            ("application", None),
            ("versions", 7),
            ("stale_since", None),
            ("crashes", []),
            ("access_logs", []),
        ]
    },
}


@pytest.mark.parametrize("act", ENDLESS, ids=lambda act: getattr(act, "__name__", "silence"))
def test_an_answer_without_an_end_ends(runtime: Path, act: Callable[[socket.socket], object]) -> None:
    path = runtime / "kumadp" / "web.control"
    with serving(path, act), pytest.raises(OSError, match=r"timed out|larger than|not HTTP"):
        query_status(path, 0.4)


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_an_error_that_names_what_is_wrong(runtime: Path, name: str) -> None:
    path = runtime / "kumadp" / "web.control"
    with serving(path, sending(NONSENSE[name])), pytest.raises(OSError, match=r"answer") as caught:
        query_status(path, 10)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_the_largest_answer_is_read_and_one_byte_more_is_not(runtime: Path) -> None:
    path = runtime / "kumadp" / "web.control"
    empty = len(json.dumps({"a": ""}))
    for size in (LARGEST_BODY, LARGEST_BODY + 1):
        body = json.dumps({"a": "x" * (size - empty)}).encode()
        assert len(body) == size
        with serving(path, sending(answer(body))):
            if size == LARGEST_BODY:
                assert send_request(path, "GET", "/status", 10)[0] == 200
            else:
                with pytest.raises(OSError, match="larger than"):
                    send_request(path, "GET", "/status", 10)
        path.unlink()


def test_chunks_and_provisional_answers_are_read(runtime: Path) -> None:
    path = runtime / "kumadp" / "web.control"
    chunked = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{"a\r\n4;x=y\r\n":1}\r\n0\r\n\r\n'
    with serving(path, sending(b"HTTP/1.1 100 Continue\r\n\r\n" + chunked)):
        assert send_request(path, "GET", "/status", 10) == (200, {"a": 1})


def test_untrusted_is_what_other_failures_of_a_socket_are() -> None:
    assert issubclass(UntrustedSocket, OSError)


SOME = ["no HTTP", "no JSON", "deep objects", "an empty object", "children as {'envoy': {}}"]


def run_limited(runtime: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command that may have a gigabyte of addresses, and no more."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.isolated_kumadp", *command],
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )


@pytest.mark.attack
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
@pytest.mark.parametrize("kind", [*SOME, "flood", "drip"])
def test_the_commands_end_with_one_line(runtime: Path, command: list[str], kind: str) -> None:
    path = runtime / "kumadp" / socket_name("web")
    act = {"flood": flood, "drip": drip_body}.get(kind) or sending(NONSENSE[kind])
    arguments = [*command, "--timeout=500ms"] if command[0] in {"reload", "reexec"} else command
    with serving(path, act):
        done = run_limited(runtime, *arguments)
    if command[0] in {"reload", "log-level", "reexec"} and kind in {"an empty object", "children as {'envoy': {}}"}:
        # An order's answer needs nothing but its code; a re-execution is then looked for in the status.
        assert done.returncode == (79 if command[0] == "reexec" else 0)
    else:
        assert done.returncode == (75 if command[0] == "wait" else 79)
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["drip", "drip_continues", "flood_head", "silence"])
def test_wait_ends_whatever_socket_it_queries(runtime: Path, kind: str) -> None:
    acts: dict[str, Callable[[socket.socket], object]] = {
        "drip": drip,
        "drip_continues": drip_continues,
        "flood_head": flood_head,
        "silence": lambda _client: threading.Event().wait(60),
    }
    path = runtime / "any.sock"
    with serving(path, acts[kind]):
        done = run_limited(runtime, "wait", f"--unix-socket={path}", "--timeout=1s")
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("Error: not ready within 1s: ")


@pytest.mark.parametrize("output", ["human", "json"])
def test_what_a_data_plane_sends_cannot_drive_a_terminal(runtime: Path, output: str) -> None:
    bell = "\x1b]0;owned\x07\x9b2J\r\nREADY\u202e"
    path = runtime / "kumadp" / socket_name("web")
    report = status(
        name=f"web{bell}",
        why=bell,
        phase=f"X{bell}",
        mode=bell,
        version=bell,
        reasons=[bell],
        fatal={bell: bell},
        ports={bell: bell},
        children={
            bell: {
                "state": bell,
                "pid": 1,
                "restarts": 0,
                "last_exit": bell,
                "reason": bell,
                "since": 0.0,
                "started": 1.0,
                "died": 1.0,
                "causes": {},
            }
        },
    )
    with serving(path, sending(report)):
        done = kumadp("status", f"--output={output}", environment={"XDG_RUNTIME_DIR": str(runtime)})
    assert done.returncode == 75, done.stderr
    assert not [letter for letter in done.stdout if letter != "\n" and not letter.isprintable()]
    with serving(runtime / "kumadp" / "x.control", sending(answer(json.dumps({"said": bell}).encode()))):
        done = kumadp("reload", "--name=x", environment={"XDG_RUNTIME_DIR": str(runtime)})
    assert done.returncode == 0
    assert not [letter for letter in done.stdout if letter != "\n" and not letter.isprintable()]


def test_a_name_is_required_if_another_user_s_data_plane_is_possible(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --name only a data plane of this user is queried, and only if there is just one."""
    own, strange = Running(runtime / "a.control", os.geteuid(), 1), Running(runtime / "b.control", STRANGER, 2)
    far = Running(runtime / "c.control", os.geteuid(), 3, listed=True)
    other = ["x of user eve"]

    def chosen(*running: Running, name: str = "", others: Sequence[str] = ()) -> Running | None:
        monkeypatch.setattr(remote, "find", lambda _environ: Search(list(running), list(others)))
        try:
            return remote.only_running(name)
        except CommandRefused:
            return None

    assert chosen(own) == chosen(own, others=other) == chosen(own, far) == own
    assert chosen(far) == chosen(far, others=other) == far
    assert chosen(strange) == strange, "the only one there is"
    assert chosen() is chosen(strange, others=other) is chosen(own, strange) is chosen(far, strange) is None
    assert chosen(own, own) is chosen(far, far) is chosen(strange, strange) is None
    assert chosen(own, strange, name="b") == chosen(strange, name="b", others=other) == strange
    same = Running(runtime / "elsewhere" / "b.control", os.geteuid(), 4)
    assert chosen(same, strange, name="b") == same
    assert chosen(strange, strange, name="b") is None


def test_doctor_of_root_runs_nothing_that_another_user_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        missing("needs root, to be two users")
    command = ["sh", "-c", "sleep 60; :", "x", "run", "--name=a", "--mesh=b", f"--binary-path={tmp_path}/evil"]
    with subprocess.Popen(command, user=STRANGER, group=STRANGER, extra_groups=[STRANGER + 1], cwd="/") as process:
        report = {"name": "a", "pid": process.pid, "uid": STRANGER, "listed": False}
        monkeypatch.setattr(doctor, "_statuses", lambda: [report])
        pid = os.fork()
        if pid == 0:  # pragma: no cover - another process
            with contextlib.suppress(BaseException):
                subject, whence = doctor._subject({}, {})
                right = subject.settings.binary_path.endswith("evil") and f"as uid {STRANGER}" in whence
                ids = (os.getuid(), os.geteuid(), os.getgid(), os.getgroups())
                os._exit(0 if right and ids == (STRANGER, STRANGER, STRANGER, [STRANGER + 1]) else 3)
            os._exit(4)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        process.kill()
    assert code == 0
