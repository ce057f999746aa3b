"""The shipped examples for cloud-init and Ansible install kumadp on a booted host, which joins a mesh."""

from __future__ import annotations

import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.needs import need_program
from tests.support.nspawn_host import NspawnHost, booted_host
from tests.support.poll import poll
from tests.support.scripted_control_plane import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = ROOT / "configs"
# A boot and a package in one go: not on each worker.
pytestmark = [pytest.mark.process, pytest.mark.timeout(300), pytest.mark.xdist_group("systemd")]

UNIT = "kumadp@web"
PLANE = """
import pathlib, signal, sys
sys.path.insert(0, {root!r})
from tests.support.xds.plane import XdsControlPlane
with XdsControlPlane() as plane:
    plane.faults.linger = 0
    plane.write_ca(pathlib.Path("/root/ca.crt"))
    pathlib.Path("/root/url").write_text(plane.url)
    signal.pause()
"""
# The facts that the playbook uses are replaced.
QUICK = (
    "ANSIBLE_NOCOLOR=1",
    "ANSIBLE_GATHERING=explicit",
    "ANSIBLE_PIPELINING=1",
    "ANSIBLE_VAULT_PASSWORD_FILE=password",
)
NO_CLOUD = """
datasource_list: [NoCloud]
locale: C.UTF-8
ssh_deletekeys: false
ssh_genkeytypes: [ed25519]
"""


@pytest.fixture(scope="module")
def host(package: Path) -> Iterator[NspawnHost]:
    """A host with a control plane and a workload, which knows nothing of kumadp."""
    with booted_host(f"--bind-ro={ROOT}") as box:
        shutil.copy(package, box.path("/root") / package.name)
        box.write("/root/plane.py", PLANE.format(root=str(ROOT)))
        box.run("systemd-run", "--unit=plane", sys.executable, "/root/plane.py")
        application = ("/usr/bin/python3", "-m", "http.server", "--bind=127.0.0.1", "8080")
        box.run("systemd-run", "--unit=application", "--working-directory=/usr/share/doc", *application)
        poll(lambda: box.run("cat", "/root/url", check=False).startswith("https"), what="a control plane")
        yield box


@pytest.fixture
def box(host: NspawnHost) -> Iterator[NspawnHost]:
    """The host, without kumadp before and after."""
    yield host
    host.run("dpkg", "--purge", "kumadp", check=False, timeout=120)
    assert host.run("pgrep", "-a", "-f", "kumadp run", check=False) == ""


def joins_the_mesh(box: NspawnHost, port: int = 18080) -> None:
    """Wait until the workload answers through Envoy; the token is for root and group kumadp alone."""
    box.run("kumadp", "wait", "--name=web", "--timeout=60s", timeout=90)
    request = ("curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{port}/")
    # After a reload the listeners of another Dataplane come with the next stream.
    poll(lambda: box.run(*request, check=False) == "200", what=f"an answer on port {port}", deadline=60)
    assert box.run("stat", "-c", "%a %U %G", "/etc/kumadp/web.token") == "640 root kumadp"
    assert box.run("cat", "/etc/kumadp/web.token") == TOKEN
    assert box.run("systemctl", "is-enabled", UNIT) == "enabled"


def with_these(text: str, replacements: dict[str, str]) -> str:
    """Fill in what a reader has to; each must be there."""
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def test_cloud_init_installs_it_on_the_first_boot(box: NspawnHost, package: Path) -> None:
    need_program("cloud-init", "cloud-init")
    certificate = box.run("cat", "/root/ca.crt").replace("\n", "\n      ")
    user_data = with_these((CONFIGS / "cloud-init.yaml").read_text(), {
        "-----BEGIN CERTIFICATE-----\n      CA OF THE CONTROL PLANE\n      -----END CERTIFICATE-----": certificate,
        "https://control-plane.example.com:5678": box.run("cat", "/root/url"),
        "https://packages.example.com/kumadp_0.1.0_amd64.deb": f"file:///root/{package.name}",
        "SHA256-OF-THE-PACKAGE": sha256(package.read_bytes()).hexdigest(),
        "TOKEN OF THE DATA PLANE": TOKEN,
            # A short stop.
            "      controlPlane:\n": "      dataplane: {drainTime: 1s}\n      controlPlane:\n",
        "192.168.0.10": "127.0.0.1",
    })  # fmt: skip
    box.write("/var/lib/cloud/seed/nocloud/user-data", user_data, 0o600)
    box.write("/var/lib/cloud/seed/nocloud/meta-data", "instance-id: web-1\n")
    box.write("/etc/cloud/cloud.cfg.d/90-test.cfg", NO_CLOUD)
    box.run("cloud-init", "schema", "--config-file=/var/lib/cloud/seed/nocloud/user-data")
    box.run("rm", "/etc/cloud/cloud-init.disabled")
    for stage in ("cloud-init-local", "cloud-init", "cloud-config", "cloud-final"):
        box.run("systemctl", "start", stage, timeout=120)
    logged = box.run("cat", "/var/log/cloud-init.log", "/var/log/cloud-init-output.log")
    status = box.run("cloud-init", "status", "--long", check=False)
    assert status.startswith("status: done"), f"{status}\n{logged[-4000:]}"
    assert "runcmd" in logged
    assert TOKEN not in logged
    joins_the_mesh(box)


class Ansible:
    """Somebody who runs the playbook with the role beside it, on the host itself."""

    def __init__(self, box: NspawnHost, package: Path) -> None:
        self._box = box
        box.run("cp", "-r", str(CONFIGS / "ansible"), "/root/ansible")
        self.playbook = with_these((CONFIGS / "ansible" / "playbook.yml").read_text(), {
            "https://control-plane.example.com:5678": box.run("cat", "/root/url"),
            "kumadp_package: kumadp_0.1.0_amd64.deb": f"kumadp_package: /root/{package.name}",
            "kumadp_ca_file: ca.crt": "kumadp_ca_file: /root/ca.crt",
            '"{{ ansible_default_ipv4.address }}"': "127.0.0.1",
        })  # fmt: skip
        box.write(
            "/root/ansible/hosts.ini",
            "localhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n",
        )
        box.write("/root/ansible/vault.yml", f"vault_kumadp_web_token: {TOKEN}\n", 0o600)
        box.write("/root/ansible/password", "password of the vault\n", 0o600)
        self.run("ansible-vault", "encrypt", "vault.yml")

    def run(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run one of Ansible's programs in the folder of the playbook."""
        inside = ("env", "--chdir=/root/ansible", *QUICK, program)
        shown = self._box.run(*inside, *arguments, check=check, timeout=200)
        assert TOKEN not in shown
        return shown

    def play(self, playbook: str, *options: str, check: bool = True) -> str:
        """Run this text as the playbook, with all that Ansible shows."""
        self._box.write("/root/ansible/playbook.yml", playbook)
        shown = ("-vvv", "--diff", *options)
        return self.run(
            "ansible-playbook", "--inventory=hosts.ini", "--extra-vars=@vault.yml", *shown, "playbook.yml", check=check
        )


def test_ansible_installs_it_and_reloads_it_on_a_change(box: NspawnHost, package: Path) -> None:
    need_program("ansible-playbook", "ansible-core")
    need_program("ansible-vault", "ansible-core")
    ansible = Ansible(box, package)
    shown = ansible.play(ansible.playbook)
    assert "failed=0" in shown
    joins_the_mesh(box)
    pid = box.show(UNIT, "MainPID")
    # Only the Dataplane and the settings change: all else stays as it is, and the handler reloads.
    changed = with_these(ansible.playbook, {"18080": "18081", "drainTime: 30s": "drainTime: 2s"})
    shown = ansible.play(changed)
    assert "changed=3 " in shown, shown[-3000:]
    assert "RUNNING HANDLER [kumadp : Reload kumadp]" in shown
    joins_the_mesh(box, 18081)
    assert box.show(UNIT, "MainPID") == pid
    # A refused one ends the play, and what runs keeps running.
    broken = with_these(changed, {"18081": "98081"})
    refused = ansible.play(broken, "--start-at-task=Write the Dataplane", check=False)
    assert "failed=1" in refused
    assert "networking.inbound[0].port" in refused
    joins_the_mesh(box, 18081)
    assert TOKEN not in box.run("journalctl", "--quiet", "--no-pager")
