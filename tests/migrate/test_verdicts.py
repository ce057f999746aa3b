"""What `kumadp migrate` makes of each option of kuma-dp, and the settings file with the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.migrate.plan import settings_text
from kumadp.migrate.source import KumaDp, effective, flags_of, variables_of
from kumadp.migrate.verdicts import OptionVerdict, judge
from kumadp.settings.model import Settings, options_of
from kumadp.settings.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.settings.option import Option

NAMES = json.loads((Path(__file__).parent.parent / "data/kuma_dp_options.json").read_text())
TOKEN_FILE = Path("/etc/kumadp/web.token")
OTHERS = {"--help", "-h"}
VALUES = {"integer": "1234", "boolean": "true", "duration": "1m30s", "pairs": "a:b,c:d", "texts": "/etc/a,/etc/b"}


def kuma_dp(*arguments: str, environ: Mapping[str, str] | None = None, version: str = "2.14.3") -> KumaDp:
    # CoreDNS of this host is of no interest.
    environ = {"PATH": "/nonexistent", **(environ or {})}
    return KumaDp("pid 1", ("run", *arguments), environ, Path("/srv"), program="/opt/kuma/kuma-dp", version=version)


def rows(source: KumaDp) -> dict[str, OptionVerdict]:
    """Return the verdicts by name, without those of options that were not given."""
    return {row.name: row for row in judge(source, TOKEN_FILE).options if row.source != "default"}


def value_of(option: Option | None, flag: bool) -> str:
    if option is None:
        return "x"
    if option.choices:
        return next(choice for choice in option.choices if choice)
    if option.kind == "pairs" and flag:
        return "a=b"
    return VALUES.get(option.kind, "/etc/x" if option.metavar == "PATH" else "https://x:5678")


@pytest.mark.parametrize("version", NAMES)
def test_each_flag_has_a_verdict(version: str) -> None:
    by_flag = {flag: option for option in options_of("run") for flag in option.flags}
    for flag in NAMES[version]["flags"]:
        if flag in OTHERS:
            continue
        row = rows(kuma_dp(flag, value_of(by_flag[flag], flag=True)))[flag]
        assert row.verdict in {"understood", "mapped"}, row


@pytest.mark.parametrize("version", NAMES)
def test_each_variable_has_a_verdict(version: str) -> None:
    by_variable = {name: option for option in options_of("run") for name in option.variables}
    for name in NAMES[version]["variables"]:
        row = rows(kuma_dp(environ={name: value_of(by_variable.get(name), flag=False)}))[name]
        known = {"understood", "mapped", "ignored"}
        assert row.verdict in known, row
        assert "nor kumadp" not in row.text


def settings_of(source: KumaDp) -> Settings:
    text = settings_text(judge(source, TOKEN_FILE), "pid 1")
    return resolve("run", {}, {}, text, "settings").settings


def test_the_settings_file_has_the_values_of_kuma_dp() -> None:
    source = kuma_dp(
        "--cp-address=https://cp:5678",
        "--ca-cert-file",
        "ca.crt",
        "-d=dp.yaml",
        "-v",
        "name=web",
        "--dataplane-var=address=10.0.0.1,port=80",
        "--dataplane-token-file=/etc/kuma/token",
        "--drain-time",
        "1m30s",
        "--concurrency=2",
        "--dns-enable-logging",
        "--dns-enabled=false",
        "--transparent-proxy-config=/etc/a.yaml,b.yaml",
        environ={"KUMA_READINESS_PORT": "9902", "KUMA_DATAPLANE_RUNTIME_OTEL_PIPE_ENABLED": "F"},
    )
    assert settings_of(source) == Settings(
        cp_address="https://cp:5678",
        ca_cert_file="/srv/ca.crt",
        dataplane_file="/srv/dp.yaml",
        dataplane_vars={"name": "web", "address": "10.0.0.1", "port": "80"},
        token_path="/etc/kuma/token",
        drain_time=90.0,
        concurrency=2,
        dns_logging=True,
        dns_enabled=False,
        transparent_proxy_config=("/etc/a.yaml", "/srv/b.yaml"),
        otel_pipe_enabled=False,
    )


def test_a_variable_takes_precedence_as_with_kuma_dp() -> None:
    source = kuma_dp(
        "--cp-address=https://flag:5678",
        environ={"KUMA_CONTROL_PLANE_URL": "https://b:1", "CONTROLPLANE_KUMA_CONTROL_PLANE_URL": "https://a:1"},
    )
    found = rows(source)
    assert found["--cp-address"].verdict == "ignored"
    assert "CONTROLPLANE_KUMA_CONTROL_PLANE_URL" in found["--cp-address"].text
    assert found["KUMA_CONTROL_PLANE_URL"].verdict == "ignored"
    assert judge(source, TOKEN_FILE).values["cp_address"] == "https://a:1"


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("-d", "a"), [("-d", "a")]),
        (("-da",), [("-d", "a")]),
        (("-d=a",), [("-d", "a")]),
        (("--log-level", "debug", "run", "--name", "x"), [("--log-level", "debug"), ("--name", "x")]),
        (("--dns-enabled", "--name=x"), [("--dns-enabled", None), ("--name", "x")]),
        (("--name=", "--", "--mesh=x"), [("--name", "")]),
        (("--new", "value", "--other"), [("--new", "value"), ("--other", None)]),
        (("--name",), [("--name", None)]),
    ],
)
def test_flags_are_read_as_pflag_does(words: tuple[str, ...], given: list[tuple[str, str | None]]) -> None:
    assert [(flag.name, flag.text) for flag in flags_of(words)] == given


def test_the_last_flag_counts_and_lists_are_merged() -> None:
    flags = flags_of(["--name=a", "--name=b", "-v", "x=1", "-v", "y=2"])
    chosen = effective(flags, variables_of({}))
    assert [given.text for given in chosen["name"]] == ["b"]
    assert [given.text for given in chosen["dataplane_vars"]] == ["x=1", "y=2"]


@pytest.mark.parametrize(
    ("source", "name", "verdict", "text"),
    [
        (kuma_dp("--dataplane-file=-"), "--dataplane-file", "in the way", "standard input"),
        (kuma_dp("--dataplane-file=/home/me/dp.yaml"), "--dataplane-file", "in the way", "cannot see /home/me/dp.yaml"),
        (kuma_dp("--drain-time=30"), "--drain-time", "in the way", "kuma-dp would not start"),
        (kuma_dp("--log-output-path=/x\nExecStartPre=+/bin/sh"), "--log-output-path", "in the way", "control char"),
        (kuma_dp(environ={"OTEL_X": "a\nb"}), "OTEL_X", "in the way", "control character"),
        (kuma_dp("--drain-time"), "--drain-time", "in the way", "has no value"),
        (kuma_dp("--wormhole=1"), "--wormhole", "in the way", "find out what it does"),
        (kuma_dp("--config-dir=/tmp/x"), "--config-dir", "mapped", "its own private directory"),
        (kuma_dp(environ={"KUMA_DATAPLANE_RUNTIME_SOCKET_DIR": "/x"}),
         "KUMA_DATAPLANE_RUNTIME_SOCKET_DIR", "mapped", "its own private directory"),
        (kuma_dp(environ={"KUMA_DATAPLANE_RESILIENT_COMPONENT_BASE_BACKOFF": "5s"}),
         "KUMA_DATAPLANE_RESILIENT_COMPONENT_BASE_BACKOFF", "ignored", "without effect"),
        (kuma_dp(environ={"KUMA_SOMETHING": "x"}), "KUMA_SOMETHING", "ignored", "neither kuma-dp"),
        (kuma_dp(environ={"HTTPS_PROXY": "http://me:secret@proxy"}), "HTTPS_PROXY", "ignored", "without a proxy"),
        (kuma_dp(environ={"OTEL_SERVICE_NAME": "web"}), "OTEL_SERVICE_NAME", "understood", "the same variable"),
    ],
)  # fmt: skip
def test_verdicts(source: KumaDp, name: str, verdict: str, text: str) -> None:
    row = rows(source)[name]
    assert row.verdict == verdict
    assert text in row.text


def test_no_secret_is_shown() -> None:
    source = kuma_dp(
        "--dataplane-token=eyJhbGciOiJ.a.b",
        "--unknown",
        "hush-hush-1",
        environ={
            "KUMA_DATAPLANE_RUNTIME_TOKEN": "eyJhbGciOiJ.c.d",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hush-hush-2",
            "HTTPS_PROXY": "http://me:hush-hush-3@proxy",
        },
    )
    judged = judge(source, TOKEN_FILE)
    shown = repr(judged.options)
    assert "eyJhbGciOiJ" not in shown
    assert "hush" not in shown
    assert judged.token == "eyJhbGciOiJ.c.d"
    assert judged.values["token_path"] == str(TOKEN_FILE)
    assert set(judged.secrets()) == {"eyJhbGciOiJ.c.d", "authorization=hush-hush-2"}


@pytest.mark.parametrize(
    ("version", "arguments", "verdicts"),
    [
        ("2.8.8", (), ["in the way"]),
        ("2.13.5", (), ["in the way"]),
        ("", (), ["in the way"]),
        ("2.14.3", (), ["understood"]),
        ("3.0.0", (), ["understood"]),
        ("2.8.8", ("--ca-cert-file=/etc/ca.crt",), []),
        ("2.8.8", ("--cp-address=http://cp:5678",), []),
    ],
)
def test_a_control_plane_that_nobody_verifies(version: str, arguments: tuple[str, ...], verdicts: list[str]) -> None:
    options = judge(kuma_dp(*arguments, version=version), TOKEN_FILE).options
    assert [row.verdict for row in options if row.source == "default"] == verdicts


def test_the_same_envoy_runs(tmp_path: Path) -> None:
    """Kuma's archive has Envoy and CoreDNS beside kuma-dp, where a unit would not find them."""
    for name in ("envoy", "coredns"):
        (tmp_path / name).touch(0o755)
    source = KumaDp("pid 1", ("run",), {"PATH": "/nonexistent"}, program=str(tmp_path / "kuma-dp"), version="2.14.3")
    values = judge(source, TOKEN_FILE).values
    assert (values["binary_path"], values["coredns_path"]) == (str(tmp_path / "envoy"), str(tmp_path / "coredns"))
    source = KumaDp("pid 1", ("run", "--dns-enabled=false", "--binary-path=envoy"), {"PATH": str(tmp_path)})
    judged = judge(source, TOKEN_FILE)
    assert judged.values["binary_path"] == str(tmp_path / "envoy")
    assert "coredns_path" not in judged.values
