"""The compose file: each option of kumadp in it is one that kumadp has, and its services fit together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kumadp.resources.types import Dataplane
from kumadp.settings.model import options_of
from kumadp.settings.resolve import resolve
from kumadp.settings.values import parse_duration
from kumadp.standalone.mesh import read_mesh
from tests.support.kuma_control_plane import control_plane
from tests.support.scripted_control_plane import ScriptedControlPlane, bootstrap_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "configs" / "compose.yaml").read_text(encoding="utf-8")
NAMES = ("web", "backend")
IMAGES = {"KUMADP_IMAGE", "KUMA_CP_IMAGE", "APP_IMAGE"}
# Where the image has folders of the user that it runs as.
OWN_FOLDERS = ("/run/kumadp", "/var/lib/kumadp")


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load(TEXT)
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Each volume of a service, and where it is mounted."""
    return dict(mount.split(":")[:2] for mount in service.get("volumes", []))


def test_images_come_by_name_and_a_missing_one_is_an_error(services: dict[str, Any]) -> None:
    variables = [re.fullmatch(r"\$\{(\w+):\?[^}]+\}", service["image"]) for service in services.values()]
    assert {match[1] for match in variables if match} == IMAGES
    assert None not in variables
    # Nothing else is substituted, also not in the script.
    assert len(re.findall(r"\$", TEXT)) == len(IMAGES)


def test_services_refer_to_what_is_there(compose: dict[str, Any], services: dict[str, Any]) -> None:
    for service in services.values():
        mode, _, owner = service.get("network_mode", "service:control-plane").partition(":")
        assert mode == "service"
        assert {owner, *service.get("depends_on", {})} <= set(services)
        assert set(service.get("networks", {})) <= set(compose["networks"])
        assert set(mounts(service)) <= set(compose["volumes"])
        assert service["restart"] in {"unless-stopped", "no"}


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_a_sidecar_are_known_and_fit_its_container(
    services: dict[str, Any], tmp_path: Path, name: str
) -> None:
    sidecar, network = services[f"{name}-sidecar"], services[f"{name}-network"]
    environment: dict[str, str] = sidecar["environment"]
    command, *flags = sidecar["command"]
    assert (command, flags) == ("run", [])
    assert set(environment) <= {variable for option in options_of("run") for variable in option.read_variables}
    resolved = resolve("run", {}, environment)
    assert resolved.warnings == ()
    (tmp_path / "dataplane.yaml").write_text(environment["KUMA_DATAPLANE_RUNTIME_RESOURCE"])
    resource = read_mesh(tmp_path / "dataplane.yaml", "").ours
    assert resource.name == name
    assert isinstance(resource.spec, Dataplane)
    assert resource.spec.networking.address == network["networks"]["mesh"]["ipv4_address"]
    assert mounts(sidecar)["credentials"] == "/etc/kumadp"
    assert resolved.settings.token_path == f"/etc/kumadp/{name}.token"
    assert resolved.settings.ca_cert_file == "/etc/kumadp/ca.crt"
    assert environment["KUMA_CONTROL_PLANE_URL"] == f"https://{services['control-plane']['hostname']}:5678"


@pytest.mark.parametrize("name", NAMES)
def test_a_sidecar_stops_first_and_has_the_time_to_drain(services: dict[str, Any], name: str) -> None:
    sidecar = services[f"{name}-sidecar"]
    assert parse_duration(sidecar["stop_grace_period"]) > parse_duration(
        sidecar["environment"]["KUMA_DATAPLANE_DRAIN_TIME"]
    )
    assert sidecar["depends_on"][name] == {"condition": "service_started"}
    assert services[name]["network_mode"] == sidecar["network_mode"] == f"service:{name}-network"


@pytest.mark.parametrize("name", NAMES)
def test_a_sidecar_has_no_rights_and_the_check_of_the_image(services: dict[str, Any], name: str) -> None:
    sidecar = services[f"{name}-sidecar"]
    assert (sidecar["read_only"], sidecar["cap_drop"]) == (True, ["ALL"])
    assert sidecar["security_opt"] == ["no-new-privileges"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"CMD {' '.join(sidecar['healthcheck']['test'][1:])} ||" in dockerfile
    assert "credentials:/etc/kumadp:ro" in sidecar["volumes"]


def test_new_volumes_are_mounted_where_the_image_has_folders_of_its_user(services: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"install -d -o 5678 -g 5678 -m 0700 {' '.join(OWN_FOLDERS)}" in dockerfile
    writable = [place for name in ("credentials", *(f"{name}-sidecar" for name in NAMES))
                for volume, place in mounts(services[name]).items()
                if name == "credentials" or volume != "credentials"]  # fmt: skip
    assert set(writable) == set(OWN_FOLDERS)


def request_credentials(services: dict[str, Any], replacements: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script of the service, with other ports and another folder."""
    (script,) = services["credentials"]["command"]
    for old, new in replacements.items():
        assert old in script
        script = script.replace(old, new)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


class _Tokens(BaseHTTPRequestHandler):
    """The API of a control plane that issues a token for what is requested, after it has failed once."""

    failures = 1

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fails, type(self).failures = type(self).failures > 0, type(self).failures - 1
        self.send_response(503 if fails or self.path != "/tokens/dataplane" else 200)
        self.end_headers()
        self.wfile.write("{type} {mesh} {name}".format_map(wanted).encode())

    def log_request(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Tokens) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_credentials_are_written_for_their_owner_alone(
    services: dict[str, Any], api: ThreadingHTTPServer, tmp_path: Path
) -> None:
    with ScriptedControlPlane(bootstrap_answer({})) as plane:
        places = {"/run/kumadp": str(tmp_path), "5678": str(plane.port), "5681": str(api.server_address[1])}
        done = request_credentials(services, places)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found.pop("ca.crt").startswith("-----BEGIN CERTIFICATE-----")
    assert found == {f"{name}.token": f"dataplane default {name}" for name in NAMES}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.kuma_cp
@pytest.mark.process
def test_credentials_of_a_real_control_plane(services: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    with control_plane(tmp_path):
        done = request_credentials(services, {"/run/kumadp": str(folder)})
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} == {"ca.crt", *(f"{name}.token" for name in NAMES)}
