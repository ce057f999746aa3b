"""Corefiles: templates as kuma-dp's, the built-in one for what the binary can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.dns.corefile import CorefileFacts, built_in, render
from kumadp.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

FACTS = CorefileFacts(15053, 15054, 19153, logging=False, binary="/usr/bin/coredns", config_dir="/run/kumadp")


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (".:{{ .CoreDNSPort }} {}", ".:15053 {}"),
        ("{{.EnvoyDNSPort}}/{{ .PrometheusPort }}", "15054/19153"),
        ("{{ .CoreDNSBinaryPath }} {{ .ConfigDir }}", "/usr/bin/coredns /run/kumadp"),
        ("a{{ if .CoreDNSLogging }} log{{ end }}b", "ab"),
        ("a{{ if .CoreDNSLogging }}log{{ else }}silent{{ end }}b", "asilentb"),
        ("{{ if .Enabled }}{{ if .CoreDNSLogging }}x{{ else }}y{{ end }}{{ end }}", "y"),
        ("{{ if .CoreDNSLogging }}{{ if .Enabled }}x{{ end }}{{ .CoreDNSPort }}{{ end }}z", "z"),
        ("a {{- if .Enabled -}} b {{- end -}} c", "abc"),
        ("{{/* a remark */}}a", "a"),
        ("{{ .Enabled }}", "true"),
        ("no actions { }", "no actions { }"),
    ],
)
def test_templates_are_rendered_as_go_does(template: str, rendered: str) -> None:
    assert render(template, FACTS, "Corefile") == rendered


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("a\n{{ range .Ports }}x{{ end }}", "Corefile:2: "),
        ("{{ .NoSuchField }}", "NoSuchField"),
        ("{{ if .NoSuchField }}x{{ end }}", "NoSuchField"),
        ("{{ end }}", "{{ end }} is not understood"),
        ("{{ else }}", "{{ else }} is not understood"),
        ("{{ if .Enabled }}", "has no {{ end }}"),
    ],
)
def test_what_a_template_may_not_use_is_told_with_its_line(template: str, told: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        render(template, FACTS, "Corefile")
    assert told in str(wrong.value)


@pytest.fixture
def resolvers(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("# a remark\nnameserver 192.0.2.53\n")
    return path


def test_with_alternate_one_block_is_enough(resolvers: Path) -> None:
    text = built_in(FACTS, frozenset({"alternate", "forward"}), resolvers)
    assert "alternate NOTIMP,FORMERR,NXDOMAIN,SERVFAIL,REFUSED . " + str(resolvers) in text
    assert "prefer_udp" in text
    assert "mesh:" not in text


def test_without_alternate_names_of_the_mesh_have_a_block_of_their_own(resolvers: Path) -> None:
    text = built_in(FACTS, frozenset({"forward"}), resolvers)
    mesh, rest = text.split(".:15053 {")
    assert str(resolvers) not in mesh
    assert "mesh:15053" in mesh
    assert f"forward . {resolvers}" in rest
    assert "next NOTIMP" in rest


@pytest.mark.parametrize("content", ["", "# nameserver 192.0.2.53\n", "search example.org\n", None])
def test_without_name_servers_nothing_is_forwarded_to_them(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "resolv.conf"
    if content is not None:
        path.write_text(content)
    for plugins in (frozenset({"alternate"}), frozenset[str]()):
        assert str(path) not in built_in(FACTS, plugins, path)


def test_queries_are_logged_where_that_is_asked_for(resolvers: Path) -> None:
    noisy = CorefileFacts(15053, 15054, 19153, logging=True, binary="", config_dir="")
    assert "\n    log\n" in built_in(noisy, frozenset(), resolvers)
    assert "\n    log\n" not in built_in(FACTS, frozenset(), resolvers)
