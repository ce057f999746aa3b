"""Our bootstrap request reports what kuma-dp's does: each captured one is made again from the Dataplane it carries."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.prepare import Fetched
from kumadp.controlplane.bootstrap_client import KumaClient, Sidecar, Versions
from kumadp.controlplane.features import announced_features
from kumadp.controlplane.part import ControlPlanePart
from kumadp.controlplane.source_file import Source, write_source
from kumadp.core.context import Context, Inputs
from kumadp.core.previous import Previous
from kumadp.errors import WorkDirError
from kumadp.host.work_dir import WorkDir
from kumadp.otel.environment import inventory, read_environment
from kumadp.resources.load import load_resource
from kumadp.resources.transparent_proxy import TransparentProxy, read_transparent
from kumadp.settings.resolve import resolve
from tests.support.first_bootstrap import start_with_bootstrap
from tests.support.scripted_control_plane import TOKEN

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
REQUESTS = sorted(path.parent.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*/request.json"))

# What kumadp reports otherwise, and why.
OURS = {
    "version": "its own",
    "features": "only what works is announced",
    "dataplaneToken": "masked in the captures",
    "resources": "the memory limit of this host, see below",
    "ipv6Enabled": "known to 2.13 and later only; 2.8 passes over it",
    "spireResources": "known to 2.13 and later only; 2.8 passes over it",
}


def captured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CAPTURES / name / "request.json").read_text())
    return found


def transparent_of(theirs: dict[str, Any]) -> TransparentProxy | None:
    """The configuration that kuma-dp had, by what it reported of it."""
    if (reported := theirs.get("dataplaneConfig")) is None:
        return None
    return read_transparent([("captured", json.dumps(reported))])


def client_of(
    folder: Path,
    resource: Resource | None,
    flags: dict[str, object],
    sidecar: Sidecar | None = None,
    *,
    coredns: str = "",
    environ: dict[str, str] | None = None,
) -> KumaClient:
    settings = resolve("run", flags, environ or {}).settings
    work = WorkDir(folder, Path("/run/kumadp"), folder, temporary=False)
    build = "9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL"
    versions = Versions("1.40.0", build, coredns=coredns)
    return KumaClient(settings, resource, work, versions, sidecar or Sidecar(serves_probes=True))


def request(client: KumaClient) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client._request()[0])
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_the_request_is_kuma_dp_s(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = captured(name)
    Path(theirs["dataplaneTokenPath"]).write_text(TOKEN)
    Path("ca.pem").write_text(theirs["caCert"])
    flags: dict[str, object] = {
        "token_path": theirs["dataplaneTokenPath"],
        "ca_cert_file": "ca.pem",
        "system_ca_path": theirs["systemCaPath"],
        "readiness_port": theirs.get("readinessPort"),
        "proxy_type": theirs["proxyType"],
        # kuma-dp 3.0 has one port for DNS, and no Envoy's.
        "envoy_dns_port": theirs.get("dnsPort"),
    }
    text = theirs.pop("dataplaneResource", None)
    if text is None:
        flags |= {"name": theirs["name"], "mesh": theirs["mesh"]}
    else:
        flags["dataplane"] = text
    resource = load_resource(text, "captured") if text else None
    sidecar = Sidecar(
        dns_port=theirs.get("dnsPort"),
        resolves="dnsPort" in theirs,
        serves_probes=True,
        transparent=transparent_of(theirs),
        # Nothing is set there that could be reported.
        otel_env=inventory(read_environment({})) if "otelEnv" in theirs else None,
    )
    ours = request(client_of(tmp_path, resource, flags, sidecar))
    sent = json.loads(ours.pop("dataplaneResource", "null"))
    their_resource = json.loads(text or "null")
    if resource is not None:
        their_resource.pop("probes", None)
        # Kuma 2.13 writes the resource's kri; 2.8 passes over it.
        sent.pop("kri")
        their_resource.pop("kri", None)
        assert sent == their_resource
    assert ours.keys() - OURS == theirs.keys() - OURS
    assert {key: ours[key] for key in ours if key not in OURS} == {
        key: theirs[key] for key in theirs if key not in OURS
    }


@pytest.mark.parametrize("name", ["kuma-2.13.5/full", "kuma-2.8.8/dataplane"])
def test_key_by_key_types_are_kuma_s(tmp_path: Path, name: str) -> None:
    theirs = captured(name)
    made = client_of(tmp_path, load_resource(theirs["dataplaneResource"], "captured"), {"dataplane": "x"})
    ours = request(made)

    def shape(value: Any) -> Any:
        return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else type(value)

    for key in theirs.keys() & ours.keys() - {"dynamicMetadata"}:
        assert shape(ours[key]) == shape(theirs[key]), key


@pytest.mark.parametrize("serves", [True, False])
def test_probes_are_sent_unless_they_are_served_here(tmp_path: Path, serves: bool) -> None:
    theirs = captured("kuma-2.8.8/probes")
    resource = load_resource(theirs["dataplaneResource"], "captured")
    made = client_of(tmp_path, resource, {"dataplane": "x"}, Sidecar(serves_probes=serves))
    assert ("probes" in json.loads(request(made)["dataplaneResource"])) is not serves


def test_nothing_is_announced_that_does_not_work(tmp_path: Path) -> None:
    made = client_of(tmp_path, None, {"name": "web", "mesh": "default"})
    assert request(made)["features"] == list(announced_features(made.settings, transparent=False))


def test_the_pipe_is_announced_with_what_is_reported_of_variables(tmp_path: Path) -> None:
    sent_values = {"pipeEnabled": True}
    made = client_of(tmp_path, None, {"name": "web", "mesh": "default"}, Sidecar(otel_env=sent_values))
    found = request(made)
    assert found["features"] == list(announced_features(made.settings, transparent=False, pipe=True))
    assert found["otelEnv"] == sent_values
    # Kuma's order.
    keys = list(found)
    assert keys[keys.index("otelEnv") - 1] == "dynamicMetadata"


def test_the_memory_limit_is_the_user_s_or_the_cgroup_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumadp.host.facts.memory_limit", lambda: 512 << 20)
    flags: dict[str, object] = {"name": "web", "mesh": "default"}
    assert request(client_of(tmp_path, None, flags))["resources"] == {"maxHeapSizeBytes": 512 << 20}
    own = client_of(tmp_path, None, {**flags, "max_memory_bytes": 1000})
    assert request(own)["resources"] == {"maxHeapSizeBytes": 1000}


def test_coredns_is_reported_by_its_version(tmp_path: Path) -> None:
    flags: dict[str, object] = {"name": "web", "mesh": "default"}
    made = client_of(tmp_path, None, flags, Sidecar(dns_port=15054), coredns="1.14.7")
    assert request(made)["dynamicMetadata"] == {"version.dependencies.coredns": "1.14.7"}
    assert request(made)["dnsPort"] == 15054


def test_an_inline_token_is_a_private_file_for_envoy_too_and_follows_a_change(tmp_path: Path) -> None:
    file = tmp_path / "dataplane.token"
    for token in (TOKEN, TOKEN + "2"):
        made = client_of(tmp_path, None, {"name": "web", "mesh": "default", "token": f"{token}\n"})
        body = request(made)
        assert (body["dataplaneToken"], body["dataplaneTokenPath"]) == (token, str(file))
        assert file.read_text() == token
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_token_file_is_read_for_each_request(tmp_path: Path) -> None:
    file = tmp_path / "token"
    made = client_of(tmp_path, None, {"name": "web", "mesh": "default", "token_path": str(file)})
    for token in (TOKEN, TOKEN + "2"):
        file.write_text(f"{token}\n")
        assert request(made)["dataplaneToken"] == token


def test_transparent_proxying_is_reported_with_the_request(tmp_path: Path) -> None:
    flags: dict[str, object] = {"name": "web", "mesh": "default"}
    sidecar = Sidecar(dns_port=15060, resolves=True, transparent=TransparentProxy())
    sent_values = request(client_of(tmp_path, None, {**flags, "envoy_dns_port": "15060"}, sidecar))
    assert "feature-transparent-proxy-in-dataplane-metadata" in sent_values["features"]
    assert sent_values["dataplaneConfig"]["redirect"]["dns"] == {"enabled": True, "port": 15060}
    # Kuma's own reader of a port refuses 0, also where nothing is redirected to it.
    without_dns = request(client_of(tmp_path, None, flags, Sidecar(transparent=TransparentProxy())))
    assert without_dns["dataplaneConfig"]["redirect"]["dns"] == {"enabled": False, "port": 15054}
    assert "dataplaneConfig" not in request(client_of(tmp_path, None, flags))


def test_all_keys_in_kuma_s_order(tmp_path: Path) -> None:
    flags: dict[str, object] = {"name": "web", "mesh": "default", "token": TOKEN}
    sidecar = Sidecar(dns_port=15054, resolves=True, transparent=TransparentProxy())
    assert list(request(client_of(tmp_path, None, flags, sidecar))) == [
        "mesh",
        "name",
        "proxyType",
        "dataplaneToken",
        "dataplaneTokenPath",
        "version",
        "caCert",
        "dynamicMetadata",
        "dnsPort",
        "readinessPort",
        "operatingSystem",
        "features",
        "resources",
        "workdir",
        "metricsResources",
        "systemCaPath",
        "dataplaneConfig",
        "ipv6Enabled",
        "spireResources",
    ]


def test_what_kubernetes_and_spire_need_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumadp.host.facts.has_ipv6", lambda: True)
    settings: dict[str, object] = {"name": "web", "mesh": "default"}
    environ = {
        "HOST_IP": "10.1.2.3",
        "KUMA_DATAPLANE_RUNTIME_SPIRE_SUPPORTED": "true",
        "KUMA_DATAPLANE_RUNTIME_SPIRE_SOCKET_PATH": "/run/spire/agent.sock",
    }
    sent_values = request(client_of(tmp_path, None, settings, environ=environ))
    assert sent_values["dynamicMetadata"] == {"HOST_IP": "10.1.2.3"}
    assert "feature-spire" in sent_values["features"]
    assert sent_values["spireResources"] == {"socketPath": "/run/spire/agent.sock"}
    assert sent_values["ipv6Enabled"] is True
    off = {"KUMA_DATAPLANE_RUNTIME_IPV6_ENABLED": "false"}
    assert request(client_of(tmp_path, None, settings, environ=off))["ipv6Enabled"] is False


class NoRelay:
    def __init__(self, path: Path | None) -> None:
        self.path = path

    def preload(self) -> None:
        pass

    async def load(self, envoy_version: str) -> Fetched | None:
        del envoy_version
        return None

    async def confirm(self) -> None:
        pass


@pytest.mark.parametrize("relayed", [True, False], ids=["relay", "no relay"])
async def test_a_bootstrap_that_was_handed_over_has_its_token_only_if_envoy_connects_by_itself(
    tmp_path: Path, relayed: bool
) -> None:
    tree = parse_bootstrap((CAPTURES / "kuma-2.13.5" / "full" / "bootstrap.yaml").read_bytes())
    flags: dict[str, object] = {"name": "web", "mesh": "default", "token": TOKEN}
    context = Context(Inputs(resolve("run", flags, {}).settings, None, {}))
    context.work = WorkDir(tmp_path, tmp_path, tmp_path, temporary=False)
    part = ControlPlanePart(context, lambda: Versions("1.40.0"), Sidecar, tuple)
    part.connect(NoRelay(tmp_path / "relay.sock" if relayed else None))
    handed = msgspec.msgpack.encode(Source.of(Fetched(tree, None, 0.0)))
    part.adopt(Previous(sections={part.name: handed}))
    await start_with_bootstrap(part)
    assert part.pending
    assert (TOKEN in context.bootstrap.config_path.read_text()) is not relayed


def test_a_token_needs_no_disk_to_be_read(tmp_path: Path) -> None:
    flags: dict[str, object] = {"name": "web", "mesh": "default", "token": TOKEN}
    client = client_of(tmp_path / "gone", None, flags)
    assert client.token() == TOKEN
    with pytest.raises(WorkDirError, match="cannot be written"):
        request(client)


def test_a_bootstrap_that_cannot_be_left_to_the_next_one_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_source(tmp_path / "gone", Fetched({}, None, 0.0))
    assert "cannot be written" in caplog.text
