"""A name server that never answers must not hold up anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kumadp.errors import ExitCode
from tests.support.needs import need_envoy, need_netns
from tests.support.poll import poll

pytestmark = [pytest.mark.process, pytest.mark.netns]

# What is sent into the cable arrives nowhere: the resolver waits 30 s, five times, as long as nobody ends it.
INSIDE = """
ip link set lo up && ip link add cable type veth peer name end && ip address add 192.0.2.2/24 dev cable &&
ip link set cable up && ip link set end up &&
ip neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev cable nud permanent &&
mount --bind "$RESOLV" /etc/resolv.conf && exec "$@"
"""


def queries_resolver(pid: int) -> bool:
    """Whether a socket to port 53 of 192.0.2.1 is open in the namespace of ``pid`` (proc(5): hexadecimal)."""
    return "010200C0:0035" in Path(f"/proc/{pid}/net/udp").read_text()


def test_the_doctor_reports_it_and_ends(tmp_path: Path) -> None:
    need_netns()
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\noptions timeout:30 attempts:5\n")
    (tmp_path / "runtime").mkdir(mode=0o700)
    command = [
        *("unshare", "--net", "--mount", "sh", "-c", INSIDE, "sh", sys.executable, "-m", "kumadp", "doctor"),
        *("--cp-address=https://control-plane.example:5678", "--name=web", "--mesh=default"),
        *(f"--binary-path={need_envoy()}", f"--work-dir={tmp_path / 'work'}"),
    ]
    environment = {
        **os.environ,
        "RESOLV": str(tmp_path / "resolv.conf"),
        "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
        "KUMA_DNS_ENABLED": "false",
    }
    # The resolver itself would take minutes.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert "control-plane.example:5678: the name was not resolved within 5 s" in done.stdout
    assert re.search(r"warning +192.0.2.1 does not answer within 2 s", done.stdout)


@pytest.mark.parametrize("uvloop", ["true", "false"])
def test_sigterm_ends_the_wait_for_a_name_at_once(tmp_path: Path, uvloop: str) -> None:
    need_netns()
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\noptions timeout:30 attempts:5\n")
    (tmp_path / "runtime").mkdir(mode=0o700)
    command = [
        *("unshare", "--net", "--mount", "sh", "-c", INSIDE, "sh", sys.executable, "-m", "kumadp", "run"),
        *("--cp-address=https://control-plane.example:5678", "--name=web", "--mesh=default"),
        *(f"--binary-path={need_envoy()}", f"--work-dir={tmp_path / 'work'}", f"--uvloop={uvloop}"),
    ]
    environment = {
        **os.environ,
        "RESOLV": str(tmp_path / "resolv.conf"),
        "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
        "KUMA_DNS_ENABLED": "false",
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        poll(lambda: queries_resolver(process.pid), what="a question to the name server")
        process.terminate()
        assert process.wait(20) == ExitCode.OK
    finally:
        process.kill()
        process.wait()
