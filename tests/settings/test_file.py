"""The settings file, and its problems with line and key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.errors import Problem, SettingsError
from kumadp.settings.file import read_settings
from kumadp.settings.given import GivenValue
from kumadp.settings.resolve import resolve

if TYPE_CHECKING:
    from kumadp.settings.model import Settings

FLAGS = {"name": "web", "mesh": "default"}


def read(text: str) -> Settings:
    return resolve("run", FLAGS, {}, text, "k.yaml").settings


def problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "log:\n", "log:\n  level:\n", 'log:\n  level: ""\n', "log: ~"]
)
def test_an_empty_file_sets_nothing(text: str) -> None:
    assert read(text) == resolve("run", FLAGS, {}).settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log: [\n", "k.yaml:2: not YAML: "),
        ("log:\n\tlevel: info", "k.yaml:2: not YAML: "),
        ("log: {level: info}\n---\nlog: {}\n", "k.yaml:2: not YAML: more than one document"),
        ("a: *b", "k.yaml:1: not YAML: "),
        ("[" * 50, "k.yaml:1: not YAML: nested deeper than 20 levels"),
        ("#" * (1 << 21), "k.yaml: not YAML: larger than 1024 KiB"),
        ("log:\n  level: \x00", "k.yaml"),
        ("- log", "k.yaml:1: is not a mapping"),
        ("log", "k.yaml:1: is not a mapping"),
        ("log: info", "k.yaml:1: log: is not a mapping"),
        ("log:\n  levle: info", "k.yaml:2: log.levle: is not a setting (did you mean log.level?)"),
        ("dataplan:\n  name: a", "k.yaml:1: dataplan: is not a setting (did you mean dataplane?)"),
        ("drainTime: 5s", "k.yaml:1: drainTime: is not a setting (did you mean dataplane.drainTime?)"),
        ("zzz: 1", "k.yaml:1: zzz: is not a setting (configs/kumadp.yaml lists all keys)"),
        ("wait:\n  timeout: 5s", "k.yaml:1: wait: is not a setting"),
        ("log:\n  level: [info]", "k.yaml:2: log.level: is not a string"),
        ("dns:\n  enabled: {a: b}", "k.yaml:2: dns.enabled: is not true or false"),
        ("dns:\n  coreDnsPort: [1]", "k.yaml:2: dns.coreDnsPort: is not a whole number"),
        ("dataplane:\n  drainTime: 5", "k.yaml:2: dataplane.drainTime: '5' is not a duration"),
        ("dataplane:\n  drainTime: []", "k.yaml:2: dataplane.drainTime: is not a duration like 1m30s"),
        ("dataplaneRuntime:\n  envoyArgs: [[a]]", "k.yaml:2: dataplaneRuntime.envoyArgs: is not a list of strings"),
        (
            "dataplaneRuntime:\n  resourceVars: {a: {b: c}}",
            "k.yaml:2: dataplaneRuntime.resourceVars: is not a mapping of",
        ),
        (
            "kumadp:\n  virtualProbes:\n    ports: [a]",
            "k.yaml:3: kumadp.virtualProbes.ports: 'a' is not a whole number",
        ),
        ("log:\n  level: debug\n  level: info", "k.yaml:3: log.level: is given twice (remove one of them)"),
    ],
)
def test_a_problem_with_its_line_and_key(text: str, expected: str) -> None:
    results = problems(text)
    assert len(results) == 1
    assert results[0].startswith(expected)


def test_all_problems_at_once() -> None:
    results = problems("log:\n  level: loud\nzzz: 1\ndns:\n  enabled: perhaps\n  coreDnsPort: 99999\n")
    assert [line.split(":")[1] for line in results] == ["3", "5", "2", "6"]


def test_lists_mappings_and_yaml_s_own_shortcuts() -> None:
    settings = read(
        """\
        dataplane: &short {drainTime: 1m30s}
        dataplaneRuntime:
          envoyArgs: [--disable-extensions, envoy.filters.http.lua]
          resourceVars: {service: web, port: 80}
        kumadp:
          virtualProbes: {mode: on, ports: [80, 81]}
          envoyRestartBudget: 0
          strictAdmin: true
        log: {level: off}
        """
    )
    assert settings.drain_time == 90.0
    assert settings.envoy_args == ("--disable-extensions", "envoy.filters.http.lua")
    assert settings.dataplane_vars == {"service": "web", "port": "80"}
    assert (settings.virtual_probes, settings.virtual_probes_ports) == ("on", (80, 81))
    assert settings.envoy_restart_budget == 0
    assert settings.strict_admin
    assert settings.log_level == "off"


def test_an_alias_stands_for_what_it_names() -> None:
    settings = read("dns: {coreDnsPort: &port 5353, envoyDnsPort: 5354}\nkumadp: {virtualProbes: {port: *port}}\n")
    assert settings.virtual_probes_port == settings.coredns_port == 5353


def test_a_merge_key_merges() -> None:
    settings = read("dns:\n  <<: {coreDnsPort: 5353, enabled: true}\n  enabled: false\n")
    assert settings.coredns_port == 5353
    assert not settings.dns_enabled


def test_each_value_has_its_origin() -> None:
    invalid: list[Problem] = []
    text = "dataplane:\n  drainTime: 5s\ndns:\n  enabled:\nkumadp:\n  envoyRestartBudget: many\n"
    assert read_settings(text, "k.yaml", invalid) == {
        "drain_time": GivenValue(5.0, "file k.yaml:2: dataplane.drainTime"),
    }
    assert [str(problem) for problem in invalid] == [
        "k.yaml:6: kumadp.envoyRestartBudget: 'many' is not a whole number",
    ]
    assert GivenValue(5.0, "file k.yaml:2: dataplane.drainTime").where == "k.yaml:2: dataplane.drainTime"
