"""The token is in the request and in files of our own, and nowhere else: the test looks."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import Ports, run_kumadp, workload
from tests.support.rig import NODE, open_rig
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer, static_bootstrap
from tests.support.xds.mesh import IDENTITY
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import SECRET as SECRET_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.xds.mesh import Mesh

pytestmark = pytest.mark.process

PARTS = (b'{"alg":"RS256"}', b'{"Name":"web-1"}', b"a-signature-that-nobody-may-see")
TOKEN = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in PARTS)
SECRET = TOKEN.rpartition(".")[2]


def given(how: str, folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments and variables that give the token in one of the ways."""
    if how == "file":
        file = folder / "token"
        file.write_text(f"{TOKEN}\n")
        file.chmod(0o600)
        return (f"--dataplane-token-file={file}",), {}
    if how == "variable":
        return (), {"KUMA_DATAPLANE_RUNTIME_TOKEN": TOKEN}
    settings = folder / "kumadp.yaml"
    settings.write_text(f"dataplaneRuntime:\n  token: {TOKEN}\n")
    settings.chmod(0o600)
    return (f"--config={settings}",), {}


def processes(pid: int) -> Iterator[psutil.Process]:
    parent = psutil.Process(pid)
    yield parent
    yield from parent.children(recursive=True)


def open_files(folder: Path) -> list[str]:
    """Files under ``folder`` that hold the secret and that others may read."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and SECRET in path.read_text(errors="replace") and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("how", ["file", "variable", "settings file"])
def test_the_token_shows_nowhere(tmp_path: Path, how: str, form: str) -> None:
    ports = Ports.take()
    arguments, variables = given(how, tmp_path)
    with workload("web") as app:
        bootstrap = static_bootstrap(ports, app.port)
        # As Kuma 2.8 does, which puts the token into the bootstrap itself.
        bootstrap["node"]["metadata"] = {"note": TOKEN}
        # An answer that repeats the token must not carry it into the log either.
        answers = (Answer(503, f"no: {TOKEN}".encode()), bootstrap_answer(bootstrap))
        with (
            ScriptedControlPlane(*answers) as plane,
            run_kumadp(
                tmp_path,
                ports,
                *(f"--cp-address={plane.url}", f"--ca-cert-file={plane.write_ca(tmp_path / 'ca.crt')}"),
                *("--name=web-1", "--mesh=default", "--log-level=debug", f"--log-format={form}", "--drain-time=1s"),
                *arguments,
                environment={**variables, "KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"},
            ) as daemon,
        ):
            daemon.wait_ready()
            assert plane.requests[0]["dataplaneToken"] == TOKEN
            for process in processes(daemon.pid):
                assert SECRET not in " ".join(process.cmdline())
                if process.pid != daemon.pid:
                    assert SECRET not in Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
            report = query_status(control_socket_path("web-1", daemon.environment))
            assert SECRET not in json.dumps(report)
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
            assert SECRET not in daemon.output()
            assert open_files(tmp_path) == []
            assert "HTTP 503: no: ***" in daemon.output()


class TokenControlPlane(XdsControlPlane):
    """One that gives and takes this token."""

    def token(self, mesh: str = "default", name: str = "") -> str:
        return TOKEN


def holding(folder: Path, secret: str) -> set[Path]:
    """Files under ``folder`` that hold the secret, whoever may read them."""
    return {path for path in folder.rglob("*") if path.is_file() and secret in path.read_text(errors="replace")}


@pytest.mark.parametrize("how", ["file", "variable", "settings file"])
def test_with_the_relay_no_token_and_no_key_is_exposed(tmp_path: Path, how: str) -> None:
    with TokenControlPlane() as plane, open_rig(tmp_path, plane) as rig:
        plane.use_mtls()
        given_as, variables = given(how, tmp_path)
        rig.token.unlink()
        # What came without a file gets one, in the private work directory.
        own = {tmp_path / "token", tmp_path / "kumadp.yaml", rig.work / "dataplane.token"}
        with rig.run("--log-level=debug", *given_as, environment=variables) as daemon:
            rig.wait_ready(daemon)
            key = private_key(plane.mesh(NODE))
            assert stat.S_IMODE((rig.work / "relay.sock").stat().st_mode) == 0o600
            assert stat.S_IMODE(rig.work.stat().st_mode) == 0o700
            rig.kill_envoy(daemon)
            # A rejected stream repeats what the control plane reports of the token.
            plane.faults.linger = 0.0
            plane.faults.refuse_token = lambda token: f"no: {token}"
            plane.reset_streams()
            rig.wait_warning(daemon, "no: ***")
            plane.faults.refuse_token = lambda _token: ""
            rig.wait_state(daemon, "open")
            dump = daemon.get_admin("/config_dump?include_eds")[1]
            assert "ads_cluster" in dump
            report = json.dumps(rig.status(daemon))
            for secret in (SECRET, key):
                assert secret not in dump
                assert secret not in report
                assert secret not in daemon.output()
                assert holding(tmp_path, secret) <= (own if secret == SECRET else set())
            for process in processes(daemon.pid):
                assert SECRET not in " ".join(process.cmdline())
                if process.pid != daemon.pid:
                    assert SECRET not in Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
            assert (rig.state / "last-good.msgpack").exists()
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
            assert holding(tmp_path, SECRET) <= own
            assert open_files(tmp_path) == []
            assert holding(tmp_path, key) == set()


def private_key(mesh: Mesh) -> str:
    """A line of the key that the data plane has of the mesh."""
    pem: str = mesh.trees[SECRET_TYPE][IDENTITY]["tlsCertificate"]["privateKey"]["inlineString"]
    return pem.splitlines()[2]


@pytest.mark.parametrize("broken", [f"{TOKEN} {TOKEN}", f"{TOKEN}\n{TOKEN}", SECRET])
def test_a_broken_token_is_refused_without_being_shown(tmp_path: Path, broken: str) -> None:
    ports = Ports.take()
    (tmp_path / "token").write_text(broken)
    arguments = ("--cp-address=https://127.0.0.1:1", "--name=web-1", "--mesh=default")
    for source in ((f"--dataplane-token-file={tmp_path / 'token'}",), (f"--dataplane-token={broken}",)):
        with run_kumadp(tmp_path, ports, *arguments, *source) as daemon:
            assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
            assert "token" in daemon.output().splitlines()[-1]
            assert SECRET not in daemon.output()
