"""kumadp as a service of a host that a real systemd has booted, installed from its Debian package."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.nspawn_host import NspawnHost, booted_host
from tests.support.poll import poll
from tests.support.readmes import lines_of, one_block
from tests.support.scripted_control_plane import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
# A boot and a package in one go: not on each worker.
pytestmark = [pytest.mark.process, pytest.mark.timeout(300), pytest.mark.xdist_group("systemd")]

UNIT = "kumadp@web"
APPLICATION = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1)
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"yes")
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""
# Sends 20 requests a second until SIGTERM; prints how many, and how many failed.
CLIENT = """
import signal, sys, time, urllib.request
going, sent, failed = True, 0, 0
def stop(*_): global going; going = False
signal.signal(signal.SIGTERM, stop)
end = time.monotonic() + 120
while going and time.monotonic() < end:
    sent += 1
    try:
        urllib.request.urlopen("http://127.0.0.1:18080/", timeout=5).read()
    except OSError as error:
        failed += 1
        print(error, file=sys.stderr)
    time.sleep(0.05)
print(sent, failed)
"""
DATAPLANE = """
type: Dataplane
mesh: default
name: web
networking:
  address: 127.0.0.1
  inbound:
    - port: 18080
      servicePort: 8080
      serviceAddress: 127.0.0.1
      tags: {kuma.io/service: web, kuma.io/protocol: http}
  admin: {port: 9901}
"""
SETTINGS = """
standalone: {path: /etc/kumadp/web-dataplane.yaml}
dns: {enabled: false}
dataplane: {drainTime: 2s}
"""


@pytest.fixture(scope="module")
def host(package: Path) -> Iterator[NspawnHost]:
    """A host with the package and the workload; each test starts what it needs."""
    with booted_host(f"--bind-ro={ROOT}", install=package) as box:
        box.write("/root/application.py", APPLICATION)
        box.write("/root/client.py", CLIENT)
        box.run("systemd-run", "--unit=application", "/usr/bin/python3", "/root/application.py")
        yield box


@pytest.fixture
def box(host: NspawnHost) -> Iterator[NspawnHost]:
    """The host, with nothing of kumadp running before and after."""
    host.write("/etc/kumadp/web.yaml", SETTINGS, 0o644)
    host.write("/etc/kumadp/web-dataplane.yaml", DATAPLANE)
    yield host
    host.run("systemctl", "stop", "client", check=False)
    host.run("systemctl", "reset-failed", "client", check=False)
    host.run("systemctl", "stop", UNIT)
    host.run("kumadp", "sweep", "--work-dir=/run/kumadp/web")
    host.run("systemctl", "reset-failed", UNIT, check=False)
    host.run("systemctl", "revert", UNIT, check=False)
    assert processes(host) == []


def processes(box: NspawnHost) -> list[str]:
    """What runs as the user of kumadp."""
    return box.run("pgrep", "-a", "-u", "kumadp", check=False).splitlines()


def envoy(box: NspawnHost) -> str:
    """Return the pid of the only Envoy; one that prints its version is there for a moment only."""

    def alone() -> str:
        pids = box.run("pgrep", "-u", "kumadp", "-x", "envoy").split()
        return pids[0] if len(pids) == 1 else ""

    return poll(alone, what="one Envoy")


def fetch(box: NspawnHost, path: str = "/") -> str:
    """Answer of the workload through Envoy."""
    return box.run("curl", "-fsS", "-m", "10", f"http://127.0.0.1:18080{path}")


def change(box: NspawnHost, text: str) -> None:
    """Change the unit as an operator does."""
    box.write(f"/etc/systemd/system/{UNIT}.service.d/test.conf", f"[Service]\n{text}\n")
    box.run("systemctl", "daemon-reload")


class RequestLoop:
    """A client in the box that sends requests all the time."""

    def __init__(self, box: NspawnHost) -> None:
        self._box = box
        box.run("systemd-run", "--unit=client", "--collect", "-p", "StandardOutput=file:/root/requests",
                "-p", "StandardError=file:/root/failed", "/usr/bin/python3", "/root/client.py")  # fmt: skip

    def end(self) -> tuple[int, int]:
        """Return how many requests it sent, and how many failed."""
        self._box.run("systemctl", "stop", "client")
        answered, failed = self._box.run("cat", "/root/requests").split()
        return int(answered), int(failed)


def test_start_returns_when_traffic_flows_and_the_status_is_a_line(box: NspawnHost) -> None:
    box.run("systemctl", "start", UNIT)
    assert fetch(box) == "yes"
    assert box.show(UNIT, "StatusText") == "READY: Envoy is LIVE with its listeners"
    assert {line.split()[0] for line in processes(box)} >= {envoy(box), box.show(UNIT, "MainPID")}
    assert box.run("stat", "-c", "%a %U", "/run/kumadp/web", "/var/lib/kumadp/web").split() == ["700", "kumadp"] * 2
    # In its own folder, where root finds it.
    assert box.run("kumadp", "wait", "--name=web", "--once", check=False) is not None


def test_its_lines_in_the_journal_are_for_people_and_have_fields(box: NspawnHost) -> None:
    box.run("systemctl", "start", UNIT)
    own = f"_SYSTEMD_UNIT={UNIT}.service"
    lines = box.journal(UNIT, own).splitlines()
    assert any(re.fullmatch(r"daemon: .*-> READY.*", line) for line in lines), lines
    assert not any(line.startswith("{") for line in lines)
    entries = [json.loads(line) for line in box.run("journalctl", "-q", "-u", UNIT, "-o", "json", own).splitlines()]
    ours = [entry for entry in entries if entry.get("KUMADP_LOGGER")]
    assert {"kumadp.daemon", "kumadp.child.envoy"} <= {entry["KUMADP_LOGGER"] for entry in ours}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in ours} == {"kumadp"}
    of_envoy = [entry for entry in ours if entry.get("KUMADP_CHILD") == "envoy"]
    assert {"main"} <= {entry.get("KUMADP_COMPONENT") for entry in of_envoy}
    assert {entry.get("KUMADP_EPOCH") for entry in of_envoy if "KUMADP_COMPONENT" in entry} == {"0"}
    shown = box.run("kumadp", "logs", "--name=web", "--lines=1000", "info").splitlines()
    assert any(re.search(r"Z INFO envoy/main: ", line) for line in shown), shown
    assert any(re.search(r"Z INFO daemon: .*-> READY", line) for line in shown), shown
    box.run("kill", "-KILL", envoy(box))
    ended = "envoy ended with signal 9 (KILL)"
    poll(lambda: ended in box.journal(UNIT, own, "-p", "warning"), what="a warning with its level")
    assert ended not in box.journal(UNIT, own, "-p", "err")


def test_start_waits_for_what_it_needs_and_reports_for_what(box: NspawnHost) -> None:
    box.write("/etc/kumadp/web.yaml", "controlPlane: {url: 'https://127.0.0.1:5678'}\n"
              "dataplaneRuntime: {resourcePath: /etc/kumadp/web-dataplane.yaml}\ndns: {enabled: false}\n")  # fmt: skip
    box.run("systemctl", "start", "--no-block", UNIT)
    poll(lambda: "control plane" in box.show(UNIT, "StatusText"), what="a status with the reason")
    assert "https://127.0.0.1:5678" in box.show(UNIT, "StatusText")
    assert box.show(UNIT, "ActiveState") == "activating"


def test_a_killed_kumadp_is_started_again_and_adopts_its_envoy(box: NspawnHost) -> None:
    box.run("systemctl", "start", UNIT)
    pid, before = envoy(box), box.show(UNIT, "MainPID")
    client = RequestLoop(box)
    box.run("kill", "-KILL", before)
    poll(lambda: box.show(UNIT, "NRestarts") == "1" and box.show(UNIT, "ActiveState") == "active", what="a restart")
    assert envoy(box) == pid
    assert box.show(UNIT, "MainPID") != before
    answered, failed = client.end()
    assert answered > 5
    assert failed == 0


def test_a_hung_kumadp_is_ended_by_the_watchdog_and_traffic_continues(box: NspawnHost) -> None:
    change(box, "WatchdogSec=2")
    box.run("systemctl", "start", UNIT)
    pid, client = envoy(box), RequestLoop(box)
    box.run("kill", "-STOP", box.show(UNIT, "MainPID"))
    poll(lambda: box.show(UNIT, "NRestarts") == "1" and box.show(UNIT, "ActiveState") == "active", what="a restart")
    assert "Watchdog timeout" in box.journal(UNIT)
    assert envoy(box) == pid
    assert client.end()[1] == 0


def test_what_ends_again_and_again_has_failed_with_its_reason(box: NspawnHost) -> None:
    box.run("systemd-run", "--unit=holder", "--collect", "/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1",
            "9902")  # fmt: skip
    poll(lambda: box.run("curl", "-s", "-o", "/dev/null", "http://127.0.0.1:9902/", check=False) == "", what="a holder")
    try:
        box.run("systemctl", "start", UNIT, check=False)
        poll(lambda: box.show(UNIT, "ActiveState") == "failed", what="the end of trying")
        status = box.run("systemctl", "status", UNIT, check=False)
    finally:
        box.run("systemctl", "stop", "holder")
    assert box.show(UNIT, "NRestarts") == "5"
    assert re.search(r"Status: \"STOPPED: .*9902", status), status


def test_wrong_settings_are_not_tried_again(box: NspawnHost) -> None:
    box.write("/etc/kumadp/web.yaml", "standalone: {path: /none.yaml}\n")
    box.run("systemctl", "start", UNIT, check=False)
    assert box.show(UNIT, "ActiveState") == "failed"
    assert (box.show(UNIT, "NRestarts"), box.show(UNIT, "ExecMainStatus")) == ("0", "65")
    assert "/none.yaml" in box.run("systemctl", "status", UNIT, check=False)


def test_a_stop_lets_a_request_finish_and_leaves_nothing(box: NspawnHost) -> None:
    box.run("systemctl", "start", UNIT)
    client = subprocess.Popen([*box.enter(), "curl", "-fsS", "-m", "20", "http://127.0.0.1:18080/slow"],
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    stats = ("curl", "-fsS", "http://127.0.0.1:9901/stats?filter=downstream_rq_active")
    poll(lambda: re.search(r"rq_active: [1-9]", box.run(*stats)), what="a request in flight")
    box.run("systemctl", "stop", UNIT)
    assert client.communicate(timeout=30)[0] == "yes"
    assert box.show(UNIT, "Result") == "success"
    assert processes(box) == []
    assert box.run("ls", "/run/kumadp", check=False) == ""


def test_a_stop_after_a_kill_ends_the_envoy_that_was_left(box: NspawnHost) -> None:
    change(box, "RestartSec=1h")
    box.run("systemctl", "start", UNIT)
    pid = envoy(box)
    box.run("kill", "-KILL", box.show(UNIT, "MainPID"))
    poll(lambda: box.show(UNIT, "SubState") == "auto-restart", what="the pause before a restart")
    assert envoy(box) == pid
    box.run("systemctl", "stop", UNIT)
    # In that pause systemd has nothing to stop; the next start adopts it, or this ends it.
    assert (
        "stopped envoy" in box.run("kumadp", "sweep", "--work-dir=/run/kumadp/web", check=False) or processes(box) == []
    )


def test_a_reload_applies_new_settings_without_a_lost_request(box: NspawnHost) -> None:
    box.run("systemctl", "start", UNIT)
    pid, main = envoy(box), box.show(UNIT, "MainPID")
    client = RequestLoop(box)
    box.write("/etc/kumadp/web.yaml", SETTINGS + "dataplaneRuntime: {concurrency: 3}\n")
    box.run("systemctl", "reload", UNIT)
    assert box.show(UNIT, "ActiveState") == "active"
    assert box.show(UNIT, "MainPID") == main

    def renewed() -> bool:
        pids = box.run("pgrep", "-u", "kumadp", "-x", "envoy").split()
        return pid not in pids and len(pids) == 1

    poll(renewed, what="a new Envoy alone")
    assert "--concurrency 3" in box.run("ps", "-o", "args=", "-p", envoy(box))
    assert client.end()[1] == 0
    box.write("/etc/kumadp/web.yaml", "dataplaneRuntime: {concurrency: many}\n")
    output = box.run("systemctl", "reload", UNIT, check=False)
    assert "failed" in output.lower()
    assert fetch(box) == "yes"


def test_the_doctor_reports_a_unit_that_differs(box: NspawnHost) -> None:
    def units() -> list[tuple[str, str]]:
        report = json.loads(box.run("kumadp", "doctor", "--config=/etc/kumadp/web.yaml", "--output=json", check=False))
        return [(finding["state"], finding["text"]) for finding in report["findings"] if finding["check"] == "systemd"]

    box.run("systemctl", "start", UNIT)
    unit = box.show(UNIT, "FragmentPath")
    assert ("ok", "kumadp@.service is the unit of this kumadp") in units()
    box.run("cp", "-a", unit, "/root/unit")
    box.run("sed", "-i", "s/^TimeoutStopSec=.*/TimeoutStopSec=1/", unit)
    try:
        differs = ("warning", f"{unit} is not the unit of this kumadp")
        assert {("warning", "kumadp@.service has changed on disk"), differs} <= set(units())
        box.run("systemctl", "daemon-reload")
        assert [finding for finding in units() if "kumadp@" in finding[1]] == [differs]
    finally:
        box.run("cp", "-a", "/root/unit", unit)
        box.run("systemctl", "daemon-reload")
    assert ("ok", "kumadp@.service is the unit of this kumadp") in units()


def test_an_upgrade_of_the_package_loses_no_request(box: NspawnHost, package: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    for name, old in (("DEBIAN/control", "Version: "), ("usr/lib/kumadp/kumadp/__init__.py", '__version__ = "')):
        file = tree / name
        file.write_text(re.sub(re.escape(old) + r"[0-9.]+", old + "99.0.0", file.read_text()))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, tmp_path / "newer.deb"], check=True)
    box.run("systemctl", "start", UNIT)
    pid, main = envoy(box), box.show(UNIT, "MainPID")
    with (tmp_path / "newer.deb").open("rb") as deb:
        subprocess.run([*box.enter(), "sh", "-c", "cat >/root/newer.deb"], stdin=deb, check=True)
    client = RequestLoop(box)
    box.run("dpkg", "--install", "/root/newer.deb", timeout=120)

    def status() -> dict[str, object]:
        socket = box.run("sh", "-c", "ls /run/kumadp/web/*.control")
        return dict(json.loads(box.run("curl", "-fsS", "--unix-socket", socket, "http://localhost/status")))

    poll(lambda: status()["version"] == "99.0.0", what="the new version", deadline=60)
    poll(lambda: status()["ready"], what="ready again")
    assert (envoy(box), box.show(UNIT, "MainPID")) == (pid, main)
    answered, failed = client.end()
    assert answered > 20
    assert failed == 0
    box.run("systemctl", "stop", UNIT)


def test_install_writes_a_service_and_uninstall_takes_it_away(box: NspawnHost) -> None:
    box.write("/srv/dataplane.yaml", DATAPLANE.replace("name: web", "name: other"))
    command = ("kumadp", "install", "--systemd", "--name=other", "--standalone=/srv/dataplane.yaml")
    dry = box.run(*command, "--dry-run")
    assert "would write /etc/kumadp/other.yaml" in dry
    assert box.run("ls", "/etc/systemd/system/kumadp@.service", check=False).startswith("ls: cannot")
    output = box.run(*command)
    assert output.splitlines()[-1] == "next: systemctl enable --now kumadp@other.service"
    assert {line.split()[0] for line in box.run(*command).splitlines()} == {"unchanged", "next:"}
    box.run("sh", "-c", "echo 'dns: {enabled: false}' >>/etc/kumadp/other.yaml")
    box.run("systemctl", "enable", "--now", "kumadp@other.service")
    assert fetch(box) == "yes"
    assert "kept /etc/kumadp/other.yaml" in box.run(*command)
    box.run("kumadp", "uninstall", "--systemd", "--purge", timeout=90)
    assert processes(box) == []
    leftovers = box.run("sh", "-c", "ls /etc/systemd/system | grep kumadp; ls /etc/kumadp/*.yaml", check=False)
    assert "kumadp@.service" not in leftovers
    assert "other.yaml" not in leftovers


# A control plane in the box, of the tests' own.
PLANE = """
import pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from tests.support.scripted_control_plane import TOKEN, ScriptedControlPlane, bootstrap_answer, static_bootstrap
from tests.support.daemon import Ports
ports = Ports(18080, 18081, 9901, 9902, 9000, 15053, 15054, 19153)
with ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, 8080))) as plane:
    folder = pathlib.Path("/etc/kumadp")
    plane.write_ca(folder / "ca.crt")
    (folder / "web.token").write_text(TOKEN)
    (folder / "port").write_text(str(plane.port))
    while not plane.requests:
        time.sleep(0.05)
    pathlib.Path("/root/tokens").write_text(str(plane.requests[0]["dataplaneToken"] == TOKEN and "the token"))
    signal.pause()
"""


def drop_in(box: NspawnHost, name: str) -> None:
    """Use a drop-in that is shipped, as its comment explains."""
    box.write(f"/etc/systemd/system/{UNIT}.service.d/{name}", (ROOT / "systemd" / name).read_text())
    box.run("systemctl", "daemon-reload")


def test_ports_below_1024_are_had_with_the_drop_in_for_them(box: NspawnHost) -> None:
    box.write("/etc/kumadp/web-dataplane.yaml", DATAPLANE.replace("18080", "80"))
    box.run("systemctl", "start", UNIT, check=False)
    assert "ports below 1024 need CAP_NET_BIND_SERVICE" in box.run("systemctl", "status", UNIT, check=False)
    box.run("systemctl", "stop", UNIT)
    box.run("systemctl", "reset-failed", UNIT, check=False)
    drop_in(box, "gateway-ports.conf")
    box.run("systemctl", "start", UNIT)
    assert box.run("curl", "-fsS", "-m", "10", "http://127.0.0.1:80/") == "yes"
    pid = envoy(box)
    box.run("kill", "-KILL", box.show(UNIT, "MainPID"))
    poll(lambda: box.show(UNIT, "NRestarts") == "1" and box.show(UNIT, "ActiveState") == "active", what="a restart")
    assert envoy(box) == pid


def test_a_token_that_root_alone_may_read_comes_as_a_credential(box: NspawnHost) -> None:
    box.write("/root/plane.py", PLANE.format(root=str(ROOT)))
    box.run("rm", "-f", "/etc/kumadp/port")
    box.run("systemd-run", "--unit=plane", "--collect", sys.executable, "/root/plane.py")
    try:
        poll(lambda: box.run("cat", "/etc/kumadp/port", check=False).isdigit(), what="a control plane")
        port = box.run("cat", "/etc/kumadp/port")
        box.run("mv", "/etc/kumadp/web.token", "/etc/kumadp/token")
        box.run("chown", "root:root", "/etc/kumadp/token", "/etc/kumadp/ca.crt")
        box.run("chmod", "600", "/etc/kumadp/token", "/etc/kumadp/ca.crt")
        plane = f"controlPlane: {{url: 'https://localhost:{port}'}}\n"
        resource = "dataplaneRuntime: {resourcePath: /etc/kumadp/web-dataplane.yaml}\n"
        box.write("/etc/kumadp/web.yaml", plane + resource + "dns: {enabled: false}\n")
        drop_in(box, "credentials.conf")
        box.run("systemctl", "start", UNIT)
        assert fetch(box) == "yes"
        assert box.run("cat", "/root/tokens") == "the token"
    finally:
        box.run("systemctl", "stop", "plane")
        box.run("rm", "-f", "/etc/kumadp/token", "/etc/kumadp/ca.crt", "/etc/kumadp/port", "/root/tokens")


def test_the_commands_of_readme_work(box: NspawnHost) -> None:
    box.write("/root/plane.py", PLANE.format(root=str(ROOT)))
    box.run("rm", "-f", "/etc/kumadp/web.yaml", "/etc/kumadp/port")
    box.run("systemd-run", "--unit=plane", "--collect", sys.executable, "/root/plane.py")
    try:
        port = poll(lambda: box.run("cat", "/etc/kumadp/port", check=False).partition("\n")[0].isdigit()
                    and box.run("cat", "/etc/kumadp/port"), what="a control plane")  # fmt: skip
        for line in lines_of(one_block("sh systemd").replace("5678", str(port))):
            box.run(*shlex.split(line.removeprefix("sudo ")))
        assert fetch(box) == "yes"
        box.run("systemctl", "reload", UNIT)
        # With the relay the control plane would have to speak xDS: readiness is what the bootstrap alone gives.
        assert box.show(UNIT, "ActiveState") == "active"
    finally:
        box.run("systemctl", "stop", "plane")
        box.run("kumadp", "uninstall", "--systemd", "--purge")


# A control plane in the box that speaks xDS, for as many data planes as there are.
MESH = """
import pathlib, signal, sys
sys.path.insert(0, {root!r})
from tests.support.xds.plane import XdsControlPlane
with XdsControlPlane() as plane:
    folder = pathlib.Path("/etc/kumadp")
    plane.write_ca(folder / "ca.crt")
    (folder / "token").write_text(plane.token("default", ""))
    (folder / "port").write_text(str(plane.url))
    signal.pause()
"""
INSTANCE = """
controlPlane: {{url: '{url}', caCertFile: /etc/kumadp/ca.crt}}
dataplaneRuntime: {{resourcePath: /etc/kumadp/dataplane.yaml, tokenPath: /etc/kumadp/token,
  resourceVars: {{name: i{number}, port: '{port}'}}}}
dataplane: {{readinessPort: 0, drainTime: 1s}}
dns: {{enabled: false}}
kumadp: {{adminPort: 0}}
"""
INSTANCES = 10


def test_ten_data_planes_of_the_template_are_ready_at_once(box: NspawnHost) -> None:
    box.write("/root/mesh.py", MESH.format(root=str(ROOT)))
    dataplane = DATAPLANE.replace("name: web", "name: {{name}}").replace("18080", "{{port}}")
    box.write("/etc/kumadp/dataplane.yaml", dataplane.replace("  admin: {port: 9901}\n", ""))
    box.run("rm", "-f", "/etc/kumadp/port")
    box.run("systemd-run", "--unit=mesh", "--collect", sys.executable, "/root/mesh.py")
    units = [f"kumadp@i{number}" for number in range(INSTANCES)]
    try:
        poll(lambda: box.run("cat", "/etc/kumadp/port", check=False).startswith("http"), what="a control plane")
        url = box.run("cat", "/etc/kumadp/port")
        for number in range(INSTANCES):
            text = INSTANCE.format(url=url, number=number, port=20000 + number)
            box.write(f"/etc/kumadp/i{number}.yaml", text)
        box.run("systemctl", "start", *units, timeout=150)
        assert [box.show(unit, "ActiveState") for unit in units] == ["active"] * INSTANCES
        for number in range(INSTANCES):
            assert box.run("curl", "-fsS", "-m", "10", f"http://127.0.0.1:{20000 + number}/") == "yes"
        states = [json.loads(box.run("cat", f"/run/kumadp/i{number}/state.json")) for number in range(INSTANCES)]
        addresses = [state["parts"]["addresses"] for state in states]
        assert len({state[key] for state in addresses for key in ("admin", "readiness")}) == 2 * INSTANCES
    finally:
        box.run("systemctl", "stop", *units, timeout=100)
        box.run("systemctl", "stop", "mesh")


def test_the_package_goes_without_a_trace(package: Path) -> None:
    with booted_host(install=package) as box:
        box.write("/etc/kumadp/web.yaml", SETTINGS)
        box.write("/etc/kumadp/web-dataplane.yaml", DATAPLANE)
        box.run("systemctl", "enable", "--now", UNIT)
        box.run("dpkg", "--purge", "kumadp", timeout=120)
        assert processes(box) == []
        places = "/etc/kumadp /var/lib/kumadp /run/kumadp /usr/lib/kumadp /usr/bin/kumadp"
        files = f"{places} /lib/systemd/system/kumadp* /etc/systemd/system/*.wants/kumadp*"
        assert box.run("sh", "-c", f"ls -d {files} 2>/dev/null", check=False) == ""


KUMA_DP = """
[Service]
User=daemon
WorkingDirectory=/srv/kuma
Environment=KUMA_DATAPLANE_RUNTIME_TOKEN={token} KUMA_DNS_ENABLED=false
ExecStart=/usr/local/bin/kuma-dp run --cp-address=http://127.0.0.1:5678 --dataplane-file=dp.yaml
"""
MOVED = "kumadp@moved"


def test_a_kuma_dp_is_replaced_and_comes_back(box: NspawnHost) -> None:
    """A shell with the name of kuma-dp, which reads a script `run`; one of the two units runs at a time."""
    box.run("cp", "/bin/sh", "/usr/local/bin/kuma-dp")
    box.run("mkdir", "-p", "/srv/kuma")
    box.write("/srv/kuma/run", "while :; do sleep 1; done\n", 0o644)
    box.write("/srv/kuma/dp.yaml", DATAPLANE.replace("name: web", "name: moved"), 0o644)
    box.write("/etc/systemd/system/kuma-dp.service", KUMA_DP.format(token=TOKEN), 0o644)
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", "kuma-dp")
    try:
        plan = json.loads(poll(lambda: box.run("kumadp", "migrate", "--format=json", check=False), what="a plan"))
        assert plan["in_the_way"] == 0, plan
        assert plan["kuma_dp"]["unit"] == "kuma-dp.service"
        shown = box.run("kumadp", "migrate", "--apply")
        assert TOKEN not in shown
        assert box.run("cat", "/etc/kumadp/moved.token").strip() == TOKEN
        assert box.run("stat", "-c", "%a %U %G", "/etc/kumadp/moved.token").split() == ["640", "root", "kumadp"]
        # Nothing was started, and nothing stopped.
        assert box.show("kuma-dp", "ActiveState") == "active"
        assert box.show(MOVED, "ActiveState") == "inactive"
        box.run("systemctl", "start", "--no-block", MOVED)
        waits = "a kumadp that waits for the control plane"
        poll(lambda: "control plane" in box.show(MOVED, "StatusText"), what=waits, deadline=60)
        assert box.show("kuma-dp", "ActiveState") == "inactive"
        assert box.run("ps", "-o", "user=", "-p", box.show(MOVED, "MainPID")).strip() == "daemon"
        box.run("systemctl", "start", "kuma-dp")
        poll(lambda: box.show(MOVED, "ActiveState") == "inactive", what="the end of kumadp", deadline=60)
        assert box.show("kuma-dp", "ActiveState") == "active"
    finally:
        box.run("systemctl", "stop", "kuma-dp", MOVED, check=False)
        box.run("kumadp", "uninstall", "--systemd", "--name=moved", "--purge", check=False)
        box.run("rm", "-rf", "/etc/systemd/system/kuma-dp.service", "/usr/local/bin/kuma-dp", "/srv/kuma",
                "/etc/systemd/system/kumadp.service", "/etc/systemd/system/kumadp@.service")  # fmt: skip
        box.run("systemctl", "daemon-reload")
