"""Every file of configs/ is taken by what it is written for, and does what its comments describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.errors import ResourceError
from kumadp.resources.load import load_resource_file
from kumadp.resources.types import Dataplane, ZoneEgress, ZoneIngress
from kumadp.settings.resolve import resolve
from kumadp.standalone.mesh import read_mesh
from tests.support.command import kumadp

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
VARIABLES = {"name": "web-1", "address": "192.168.0.10", "service.name": "web"}
# By tests/metrics/test_alerts.py and tests/integration/test_prometheus.py.
LOADED_BY_PROMETHEUS = {"alerts.yaml", "grafana-dashboard.json"}
# By tests/test_kubernetes.py.
LOADED_BY_KUBERNETES = {"kubernetes-sidecar.yaml"}
# By tests/test_compose.py.
LOADED_BY_COMPOSE = {"compose.yaml"}
# By tests/hosts/test_examples.py.
RUN_ON_A_HOST = {
    "cloud-init.yaml",
    "ansible/playbook.yml",
    "ansible/roles/kumadp/defaults/main.yml",
    "ansible/roles/kumadp/handlers/main.yml",
    "ansible/roles/kumadp/tasks/main.yml",
}
# By tests/integration/test_readme.py and tests/test_layout.py.
READ_BY_PEOPLE = {"README.md"}
LOADED_HERE = {
    "kumadp.yaml",
    "dataplane.yaml",
    "dataplane-kuma3.yaml",
    "dataplane-template.yaml",
    "gateway.yaml",
    "zone-ingress.yaml",
    "zone-egress.yaml",
    "zone-proxy.yaml",
    "standalone/web.yaml",
    "standalone/backend.yaml",
}


# Refused by Kuma 3.0, and the field for which it does so.
NOT_FOR_3_0 = {
    "dataplane.yaml": "networking.outbound[0].backendRef",
    "gateway.yaml": "networking.outbound[0].backendRef",
    "standalone/web.yaml": "networking.outbound[0].backendRef",
    "zone-ingress.yaml": "type",
    "zone-egress.yaml": "type",
}


def load(name: str, variables: dict[str, str] | None = None) -> Resource:
    resource = load_resource_file(CONFIGS / name, variables=variables)
    assert [note.path for note in resource.notes] == ([NOT_FOR_3_0[name]] if name in NOT_FOR_3_0 else [])
    return resource


def test_no_file_is_forgotten() -> None:
    assert {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*") if path.is_file()} == (
        LOADED_HERE | LOADED_BY_PROMETHEUS | LOADED_BY_KUBERNETES | LOADED_BY_COMPOSE | RUN_ON_A_HOST | READ_BY_PEOPLE
    )


def test_settings() -> None:
    text = (CONFIGS / "kumadp.yaml").read_text(encoding="utf-8")
    assert resolve("run", {"name": "a", "mesh": "b"}, {}, text, "kumadp.yaml").warnings == ()


def test_dataplane() -> None:
    spec = load("dataplane.yaml").spec
    assert isinstance(spec, Dataplane)
    inbound = spec.networking.inbound[0]
    assert (inbound.service, inbound.protocol, inbound.service_port) == ("web", "http", 8080)
    assert inbound.service_probe is not None
    assert [(outbound.address, outbound.port) for outbound in spec.networking.outbound] == [
        ("", 20001),
        ("127.0.0.2", 20001),
    ]
    assert spec.probes is not None
    assert spec.probes.endpoints[0].path == "/8080/healthz"


@pytest.mark.parametrize(("version", "tags"), [({}, {}), ({"service.version": "2"}, {"version": "2"})])
def test_template(version: dict[str, str], tags: dict[str, str]) -> None:
    resource = load("dataplane-template.yaml", {**VARIABLES, **version})
    assert isinstance(resource.spec, Dataplane)
    assert (resource.name, resource.spec.networking.address) == ("web-1", "192.168.0.10")
    assert resource.spec.networking.inbound[0].tags == {"kuma.io/service": "web", "kuma.io/protocol": "http", **tags}


def test_gateway() -> None:
    spec = load("gateway.yaml").spec
    assert isinstance(spec, Dataplane)
    assert spec.networking.gateway is not None
    assert spec.networking.gateway.type == "DELEGATED"


@pytest.mark.parametrize(("name", "kind"), [("zone-ingress.yaml", ZoneIngress), ("zone-egress.yaml", ZoneEgress)])
def test_zone_proxies(name: str, kind: Any) -> None:
    resource = load(name)
    assert isinstance(resource.spec, kind)
    assert resource.mesh == ""


@pytest.mark.parametrize("version", ["2.13", "2.14", "3.0"])
def test_the_dataplane_for_the_upgrade_is_right_for_each_version(version: str) -> None:
    resource = load_resource_file(CONFIGS / "dataplane-kuma3.yaml", version=version)
    ignored = ["networking.inbound[0].tags"] if version == "3.0" else []
    assert [note.path for note in resource.notes] == ignored
    assert load("dataplane-kuma3.yaml").labels == {"app": "web", "kuma.io/workload": "web"}


@pytest.mark.parametrize("version", ["2.14", "3.0"])
def test_a_zone_proxy_as_a_dataplane(version: str) -> None:
    spec = load_resource_file(CONFIGS / "zone-proxy.yaml", version=version).spec
    assert isinstance(spec, Dataplane)
    assert [listener.type for listener in spec.networking.listeners] == ["ZoneIngress", "ZoneEgress"]
    assert spec.networking.inbound == ()


@pytest.mark.parametrize("name", sorted(NOT_FOR_3_0))
def test_what_is_not_for_3_0(name: str) -> None:
    with pytest.raises(ResourceError) as refused:
        load_resource_file(CONFIGS / name, version="3.0")
    assert NOT_FOR_3_0[name] in {problem.path for problem in refused.value.problems}


@pytest.mark.parametrize("name", ["web", "backend"])
def test_standalone(name: str) -> None:
    assert read_mesh(CONFIGS / "standalone", name).ours.name == name


def test_the_outbound_of_one_leads_to_the_inbound_of_the_other() -> None:
    web, backend = load("standalone/web.yaml").spec, load("standalone/backend.yaml").spec
    assert isinstance(web, Dataplane)
    assert isinstance(backend, Dataplane)
    assert web.networking.outbound[0].tags.items() <= backend.networking.inbound[0].tags.items()


def test_the_validator_takes_them_all() -> None:
    files = sorted(LOADED_HERE - {"kumadp.yaml", "dataplane-template.yaml"})
    done = kumadp("validate", *files, cwd=CONFIGS)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("note: ")]
    assert (done.returncode, lines) == (0, [f"{len(files)} valid"])


def test_the_command_in_the_template_s_comment() -> None:
    text = (CONFIGS / "dataplane-template.yaml").read_text(encoding="utf-8")
    command = next(line.lstrip("# ").split() for line in text.splitlines() if "kumadp validate" in line)
    assert kumadp(*command[1:], cwd=CONFIGS).returncode == 0
