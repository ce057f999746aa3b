"""Corefile templates, as Go's text/template renders them."""

from __future__ import annotations

import pytest

from kumadp.dns.coredns.corefile import CorefileFacts
from kumadp.dns.coredns.template import render
from kumadp.errors import SettingsError

FACTS = CorefileFacts(15053, 15054, 19153, False, "/usr/bin/coredns", "/run/kumadp", "/etc/own").variables()


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (".:{{ .CoreDNSPort }} {}", ".:15053 {}"),
        ("{{.EnvoyDNSPort}}/{{ .PrometheusPort }}/{{ .ProxyPort }}", "15054/19153/0"),
        ("{{ .CoreDNSBinaryPath }} {{ .ConfigDir }}", "/usr/bin/coredns /run/kumadp"),
        ("{{ .CoreDNSConfigTemplatePath }}", "/etc/own"),
        ("a{{ if .CoreDNSLogging }} log{{ end }}b", "ab"),
        ("a{{ if .CoreDNSLogging }}log{{ else }}silent{{ end }}b", "asilentb"),
        ("{{ if .Enabled }}{{ if .CoreDNSLogging }}x{{ else }}y{{ end }}{{ end }}", "y"),
        ("{{ if .CoreDNSLogging }}{{ if .Enabled }}x{{ end }}{{ .CoreDNSPort }}{{ end }}z", "z"),
        ("{{ if not .CoreDNSLogging }}quiet{{ end }}", "quiet"),
        ("{{ if .ProxyPort }}p{{ else if .CoreDNSLogging }}l{{ else if .Enabled }}e{{ else }}n{{ end }}", "e"),
        ("{{ if .Enabled }}e{{ else if .CoreDNSPort }}p{{ else }}n{{ end }}", "e"),
        ("a {{- if .Enabled -}} b {{- end -}} c", "abc"),
        ("a\n{{- if .CoreDNSLogging }}\n    log\n{{- end }}\n}", "a\n}"),
        ("a\n{{- if .Enabled }}\n    log\n{{- end }}\n}", "a\n    log\n}"),
        ("a \n {{- .CoreDNSPort -}} \n b", "a15053b"),
        ("{{/* a remark */}}a{{- /* another\nremark */ -}} b", "ab"),
        ("{{ .Enabled }}", "true"),
        ("no actions { } }}", "no actions { } }}"),
    ],
)
def test_templates_are_rendered_as_go_does(template: str, rendered: str) -> None:
    assert render(template, FACTS, "Corefile").text == rendered


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{{ range .Ports }}x", "Corefile:2: "),
        ("a\n\n{{ .NoSuchField }}", "Corefile:3: Corefile template: {{ .NoSuchField }} is not supported"),
        ("{{ if .NoSuchField }}x{{ end }}", "NoSuchField"),
        ("{{ if .Enabled }}{{ else if .Wrong }}{{ end }}", "{{ else if .Wrong }} is not supported"),
        ("\n{{ end }}", "Corefile:2: Corefile template: {{ end }} has no {{ if }}"),
        ("{{ else }}", "{{ else }} has no {{ if }}"),
        ("{{ if .Enabled }}{{ else }}{{ else }}{{ end }}", "{{ else }} has no {{ if }}"),
        ("a\n{{ if .Enabled }}", "Corefile:2: Corefile template: an {{ if }} has no {{ end }}"),
        ("a\nb {{ .CoreDNSPort", "Corefile:2: Corefile template: a {{ has no }}"),
    ],
)
def test_an_unsupported_action_is_reported_with_its_line(template: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        render(template, FACTS, "Corefile")
    (problem,) = caught.value.problems
    assert message in str(problem)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        render("{{ .One }}\n{{ if .Two }}\n{{ end }}\n{{ end }}", FACTS, "Corefile")
    assert [problem.line for problem in caught.value.problems] == [1, 2, 4]


def test_a_line_of_the_text_maps_to_its_line_in_the_template() -> None:
    template = (
        ".:{{ .CoreDNSPort }} {\n{{- if .CoreDNSLogging }}\n    log\n    debug\n{{- end }}\n"
        "    forward . {{ .ConfigDir }}\n"
        "{{/* two\nlines */}}\n    last\n}\n"
    )
    rendered = render(template, FACTS, "Corefile")
    for number, line in enumerate(rendered.text.splitlines(), 1):
        for word in ("forward", "last"):
            if word in line:
                assert word in template.splitlines()[rendered.line_in_template(number) - 1]
    assert rendered.line_in_template(1) == 1
    assert rendered.line_in_template(2) == 6
