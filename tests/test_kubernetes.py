"""The example manifest is one that Kubernetes takes, and holds what Kuma's injector and kumadp agree on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kumadp.settings.model import options_of
from kumadp.settings.resolve import resolve
from kumadp.settings.values import parse_duration

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "configs" / "kubernetes-sidecar.yaml"
# The first with native sidecars on by default, and a late one.
VERSIONS = ("1.29", "1.33")


@pytest.fixture
def manifest() -> dict[str, Any]:
    loaded = yaml.safe_load(MANIFEST.read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return found


@pytest.fixture
def sidecar(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["initContainers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_it(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_and_would_refuse_what_is_wrong(manifest: dict[str, Any], version: str) -> None:
    for place, value in (("restartPolicyy", "Always"), ("livenessProbe", {"httpGet": {"path": "/ready"}})):
        wrong = copy.deepcopy(manifest)
        wrong["spec"]["template"]["spec"]["initContainers"][0][place] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_it_is_a_native_sidecar_that_drains_inbound_first(pod: dict[str, Any], sidecar: dict[str, Any]) -> None:
    assert sidecar["restartPolicy"] == "Always"
    # By this name it is found in the image: tests/hosts/test_container.py.
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["killall", "-USR2", "kuma-dp"]
    environment = {one["name"]: one.get("value", "") for one in sidecar["env"]}
    assert pod["terminationGracePeriodSeconds"] > parse_duration(environment["KUMA_DATAPLANE_DRAIN_TIME"])


def test_every_probe_requests_readiness(sidecar: dict[str, Any]) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert sidecar[probe]["httpGet"] == {"path": "/ready", "port": 9901}


def test_it_gives_up_every_right(sidecar: dict[str, Any]) -> None:
    security = sidecar["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]) == (5678, 5678, True)
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {mount["mountPath"] for mount in sidecar["volumeMounts"]} == {"/tmp"}


def test_arguments_and_variables_are_those_of_the_injector_and_mean_something_to_us(sidecar: dict[str, Any]) -> None:
    command, *flags = sidecar["args"]
    assert (command, flags) == ("run", ["--log-level=info", "--concurrency=2"])
    filled = {"KUMA_CONTROL_PLANE_CA_CERT": "pem", "POD_NAME": "web-1", "POD_NAMESPACE": "default"}
    environment = {one["name"]: one.get("value") or filled.get(one["name"], "10.0.0.1") for one in sidecar["env"]}
    # Kuma 2.8 to 2.14: what every injected pod has.
    assert set(environment) >= {
        "INSTANCE_IP",
        "KUMA_CONTROL_PLANE_CA_CERT",
        "KUMA_CONTROL_PLANE_URL",
        "KUMA_DATAPLANE_DRAIN_TIME",
        "KUMA_DATAPLANE_MESH",
        "KUMA_DATAPLANE_RUNTIME_TOKEN_PATH",
        "POD_NAME",
        "POD_NAMESPACE",
    }
    known = {name for option in options_of("run") for name in option.read_variables}
    assert set(environment) <= known
    resolved = resolve("run", {"log_level": "info", "concurrency": "2"}, environment)
    assert resolved.warnings == ()
    assert resolved.settings.name == "web-1.default"
    assert resolved.settings.token_path == "/var/run/secrets/kubernetes.io/serviceaccount/token"
