"""Options without effect with the control plane at hand are named, as the user typed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.bootstrap.generation import Generation
from kumadp.core.context import Context, Inputs
from kumadp.daemon.generation_notes import GenerationNotesPart, fields_without_effect, log_new_notes, without_effect
from kumadp.resources.load import load_resource
from kumadp.settings.model import options_of
from kumadp.settings.resolve import resolve

if TYPE_CHECKING:
    from kumadp.settings.resolve import Resolved

ENVIRON = {
    "KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED": "true",
    "KUMA_DNS_CORE_DNS_PORT": "15099",
    "KUMA_DATAPLANE_RUNTIME_SOCKET_DIR": "/run/sockets",
}


def resolved(**flags: object) -> Resolved:
    given = {"name": "web", "mesh": "default", "dns_logging": "true", **flags}
    file = "dns: {prometheusPort: 19000}\n"
    return resolve("run", given, ENVIRON, file, "kumadp.yaml", {"dns_logging": "--dns-enable-logging"})


def test_kuma_3_has_no_use_for_them() -> None:
    found = resolved()
    note = without_effect(Generation.KUMA_3, found.settings, found.origin)
    assert note.startswith("without effect with this control plane, which is of Kuma 3: ")
    _, _, names = note.partition("Kuma 3: ")
    assert sorted(names.split(", ")) == [
        "--dns-enable-logging",
        "KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED",
        "kumadp.yaml:1: dns.prometheusPort",
    ]


@pytest.mark.parametrize("generation", [None, Generation.KUMA_2])
def test_kuma_2_has(generation: Generation | None) -> None:
    found = resolved()
    assert without_effect(generation, found.settings, found.origin) == ""


def test_coredns_that_runs_nevertheless_has_a_use_for_its_options() -> None:
    found = resolved(dns_mode="coredns")
    note = without_effect(Generation.KUMA_3, found.settings, found.origin)
    assert note.endswith(": KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED")


def test_the_help_marks_them() -> None:
    marked = {option.field for option in options_of("run") if "Without effect with Kuma 3." in option.help_text}
    assert {"coredns_path", "envoy_dns_port", "dns_config_dir", "unified_resource_naming"} <= marked
    assert not marked & {"coredns_port", "dns_proxy_port", "work_dir", "socket_dir"}


def test_it_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    found = resolved()
    context = Context(Inputs(found.settings, None, {}, origins=found.origin))
    context.parts = [GenerationNotesPart(context)]
    context.note_generation(Generation.KUMA_2)
    assert "without effect" not in caplog.text
    for _ in range(2):
        context.note_generation(Generation.KUMA_3)
    assert caplog.text.count("--dns-enable-logging") == 1


DATAPLANE = """
type: Dataplane
mesh: default
name: web
probes: {endpoints: [{inboundPort: 8080, path: /8080/ok, inboundPath: /ok}]}
networking:
  address: 127.0.0.1
  advertisedAddress: 192.0.2.1
  inbound:
    - {port: 8080, protocol: http, tags: {kuma.io/service: web}}
"""


def test_fields_without_effect_are_named_with_their_place(caplog: pytest.LogCaptureFixture) -> None:
    resource = load_resource(DATAPLANE, "dp.yaml")
    assert fields_without_effect(Generation.KUMA_2, resource) == []
    assert fields_without_effect(Generation.KUMA_3, None) == []
    found = resolved(dns_logging=None)
    context = Context(Inputs(found.settings, resource, {}))
    context.parts = [GenerationNotesPart(context)]
    context.note_generation(Generation.KUMA_2)
    assert "advertisedAddress" not in caplog.text
    context.note_generation(Generation.KUMA_3)
    (line,) = [record.message for record in caplog.records if "advertisedAddress" in record.message]
    assert line.startswith("the control plane is of Kuma 3: dp.yaml:")
    assert "dp.yaml:8: networking.advertisedAddress: has no effect" in line
    assert "probes: has no effect" in line


def test_a_reloaded_dataplane_is_judged_again_but_what_is_known_is_not_logged_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    present = load_resource(DATAPLANE, "dp.yaml")
    edited = DATAPLANE.replace("tags: {kuma.io/service: web}", "name: main") + "labels: {app: a b}\n"
    log_new_notes(Generation.KUMA_2, present, load_resource("# first\n" + edited, "dp.yaml"))
    assert [record.message.partition(": ")[2].partition(";")[0] for record in caplog.records] == [
        "labels.app: 'a b' is not a valid label value",
        "networking.inbound[0].tags: are missing",
    ]
    caplog.clear()
    log_new_notes(Generation.KUMA_2, load_resource(edited, "dp.yaml"), load_resource("# x\n" + edited, "dp.yaml"))
    log_new_notes(Generation.KUMA_3, present, present)
    log_new_notes(Generation.KUMA_3, present, None)
    assert caplog.records == []
    log_new_notes(Generation.KUMA_3, None, present)
    assert "networking.advertisedAddress: has no effect" in caplog.text
