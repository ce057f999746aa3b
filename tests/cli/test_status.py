"""`kumadp status` as a command: which data planes, output, exit code, and --watch."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.cli.status import _same
from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.daemon.status_schema import StatusReport
from kumadp.host.net.socket_paths import socket_name
from tests.support.command import ROOT, kumadp
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.instances import Host


def ready(name: str) -> Status:
    status = Status(name, "standalone", "default")
    status.move(Phase.READY, "all is well")
    return status


def test_none_runs(host: Host) -> None:
    done = host.run("status")
    assert done.returncode == 79
    assert "no kumadp runs here" in done.stderr
    with host.instance("web", ready("web")):
        done = host.run("status", "--name", "other")
    assert done.returncode == 79
    assert "running: web" in done.stderr


def test_ready_or_not_is_the_exit_code(host: Host) -> None:
    with host.instance("web", ready("web")):
        done = host.run("status")
    assert done.returncode == 0
    # A second may have passed on a busy host.
    assert re.match(r"web in mesh default: READY for \ds \(all is well\)\n", done.stdout)
    starting = Status("web", "standalone", "default")
    starting.set_not_ready("envoy", "Envoy is being started")
    with host.instance("web", starting):
        done = host.run("status")
    assert done.returncode == 75
    assert "not ready      envoy: Envoy is being started" in done.stdout


def test_several_data_planes_are_one_line_each(host: Host) -> None:
    with host.instance("web", ready("web")), host.instance("api", Status("api", "standalone", "default")):
        done = host.run("status")
        lines = done.stdout.splitlines()
        assert [line.split()[:2] for line in lines[:2]] == [["api", "STARTING"], ["web", "READY"]]
        assert done.returncode == 75
        as_json = host.run("status", "-o", "json").stdout.splitlines()
        assert [json.loads(line)["name"] for line in as_json] == ["api", "web"]
        assert host.run("status", "--name=web").returncode == 0


def test_a_silent_data_plane_does_not_hide_others(host: Host) -> None:
    with host.instance("web", ready("web")), socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(host.folder / socket_name("api")))
        silent.listen()
        threading.Thread(target=lambda: silent.accept()[0].close(), daemon=True).start()
        done = host.run("status", "--output=json")
    assert json.loads(done.stdout)["name"] == "web"
    assert done.returncode == 75
    assert done.stderr.startswith("api: its control socket does not answer: ")


def test_json_has_the_documented_form(host: Host) -> None:
    with host.instance("web", ready("web")):
        done = host.run("status", "--output=json")
    assert msgspec.json.decode(done.stdout, type=StatusReport).phase == "READY"
    schema = json.loads(kumadp("status", "--schema").stdout)
    assert set(json.loads(done.stdout)) <= set(schema["$defs"]["StatusReport"]["properties"])


@contextlib.contextmanager
def watching(host: Host, out: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.isolated_kumadp", "status", "--watch"],
        stdout=out,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(host.folder.parent), "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class ReadText:
    """All that has been read from a descriptor so far."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""

    def has(self, *parts: str) -> bool:
        while select.select([self._descriptor], [], [], 0)[0]:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(self._descriptor, 65536)
            if not data:
                break
            self.text += data.decode()
        return all(part in self.text for part in parts)


def test_watch_on_a_pipe_is_a_block_for_each_change(host: Host) -> None:
    status = Status("web", "standalone", "default")
    read, write = os.pipe()
    received = ReadText(read)
    with host.instance("web", status), watching(host, write) as process:
        os.close(write)
        poll(lambda: received.has("STARTING", "drops"), what="the first block")
        status.set_not_ready("envoy", "it starts")
        poll(lambda: received.has("it starts"), what="the second block")
        status.set_not_ready("envoy", "")
        status.move(Phase.READY, "all is well")
        poll(lambda: received.has("READY for"), what="the third block")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    os.close(read)
    assert received.text.count("web in mesh default") == 3
    assert "\x1b" not in received.text


def test_watch_on_a_terminal_draws_over_and_leaves_it_as_it_was(host: Host) -> None:
    status = Status("web", "standalone", "default")
    master, slave = pty.openpty()
    received = ReadText(master)
    with host.instance("web", status), watching(host, slave) as process:
        poll(lambda: received.has("STARTING", "drops"), what="the first picture")
        assert received.text.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
        status.move(Phase.READY, "all is well")
        poll(lambda: received.has("READY"), what="the second picture")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        poll(lambda: received.has("\x1b[?25h\x1b[?1049l"), what="the first screen")
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(slave)
    os.close(master)
    assert "\x1b[2J" not in received.text, "a screen that is cleared flickers"


def test_fields_that_change_all_the_time_are_not_a_change() -> None:
    def message(seconds: float, requests: int, etag: str = "a") -> dict[str, Any]:
        status = ready("web")
        status.counters = {"virtual probes": Counter({"2xx": requests})}
        paths = {"/dns": {"etag": etag, "asked": requests, "seconds": seconds, "changes": 1}}
        status.add_section(lambda: {"dynconf": {"socket": "x", "asks": True, "paths": paths}})
        results = status.snapshot()
        return {**results, "spent": {"READY": seconds}}

    assert _same(message(1.0, 1), message(9.0, 9))
    assert not _same(message(1.0, 1), message(1.0, 1, etag="b"))
