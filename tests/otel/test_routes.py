"""Routes of signals: policy, environment, precedence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kumadp.otel.environment import read_environment
from kumadp.otel.routes import Collector, Route, routes, usable_for_metrics
from kumadp.resources.dynconf_bodies import OTEL, OtelBody, PipeBackend, decode

PREFIX = "OTEL_EXPORTER_OTLP_"


def backend(**more: Any) -> PipeBackend:
    policy = {"name": "b", "socketPath": "/s.sock", "endpoint": "collector:4317", "useHTTP": False, **more}
    for signal in ("traces", "logs", "metrics"):
        policy.setdefault(signal, {"enabled": True})
    body = decode(OTEL, json.dumps({"backends": [policy]}).encode())
    assert isinstance(body, OtelBody)
    assert body.backends
    return body.backends[0]


def route(signal: str = "traces", environ: dict[str, str] | None = None, **more: Any) -> Route:
    named = {
        (PREFIX + name if name.isupper() and name != "HOST_IP" else name): v for name, v in (environ or {}).items()
    }
    return routes(backend(**more), read_environment(named))[signal]


def test_the_policy_alone() -> None:
    result = route()
    assert (result.collector, result.path, result.headers, result.gzip, result.timeout, result.why_not) == (
        Collector("grpc", "collector:4317"),
        "",
        {},
        False,
        30.0,
        "",
    )
    assert result.collector.address == ("collector", 4317)


@pytest.mark.parametrize(
    ("path", "expected"), [("", "/v1/logs"), ("/in", "/in/v1/logs"), ("in", "/in/v1/logs"), ("/in/", "/in/v1/logs")]
)
def test_http_has_the_path_of_the_signal(path: str, expected: str) -> None:
    result = route("logs", useHTTP=True, useHTTPS=True, path=path)
    assert (result.collector.protocol, result.collector.tls, result.path) == ("http/protobuf", True, expected)


@pytest.mark.parametrize(
    ("host_ip", "expected"),
    [("", ("127.0.0.1", 4317)), ("10.0.0.7", ("10.0.0.7", 4317)), ("fd00::7", ("fd00::7", 4317))],
)
def test_an_endpoint_without_host_is_on_this_host(host_ip: str, expected: tuple[str, int]) -> None:
    assert route(endpoint=":4317", environ={"HOST_IP": host_ip}).collector.address == expected


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("[fd00::1]:4317", ("fd00::1", 4317)),
        ("collector", ("collector", 4317)),
        ("fd00::1", ("fd00::1", 4317)),
        ("unix:///run/c.sock", "/run/c.sock"),
        ("dns:///collector:1", ("collector", 1)),
        ("dns:///Kasse_1.:1", ("kasse_1.", 1)),
        ("[fe80::1%25eth0]:4317", ("fe80::1%eth0", 4317)),
        ("fe80::1%eth0", ("fe80::1%eth0", 4317)),
        ("käse.example:1", ("xn--kse-qla.example", 1)),
    ],
)
def test_addresses(endpoint: str, address: object) -> None:
    assert route(endpoint=endpoint).collector.address == address


@pytest.mark.parametrize("endpoint", ["collector:http", "collector:0", "collector:99999", ":x"])
def test_an_invalid_endpoint_is_not_used(endpoint: str) -> None:
    assert "no host and port" in route(endpoint=endpoint).why_not


@pytest.mark.parametrize("endpoint", ["a..b:1", "käse_1:1", "[fe80::1%]:1", "a b:1", f"{'a' * 64}:1", "[::1::]:1"])
def test_an_invalid_host_is_not_used(endpoint: str) -> None:
    assert route(endpoint=endpoint).why_not.startswith(f"the collector's endpoint {endpoint!r}: ")


SIGNAL_OVER_SHARED = {
    "ENDPOINT": "http://all:4317",
    "TRACES_ENDPOINT": "https://mine:4318",
    "HEADERS": "a=1",
    "TRACES_HEADERS": "b=2",
    "TIMEOUT": "1000",
    "TRACES_TIMEOUT": "2500",
    "COMPRESSION": "gzip",
    "TRACES_COMPRESSION": "none",
    "CERTIFICATE": "/ca",
    "CLIENT_CERTIFICATE": "/cert",
    "CLIENT_KEY": "/key",
}


def test_variables_of_a_signal_override_the_shared_ones() -> None:
    traces, logs = route("traces", SIGNAL_OVER_SHARED), route("logs", SIGNAL_OVER_SHARED)
    assert traces == Route(Collector("grpc", "mine:4318", True, "/ca", "/cert", "/key"), "", {"b": "2"}, False, 2.5)
    assert logs == Route(Collector("grpc", "all:4317", False, "/ca", "/cert", "/key"), "", {"a": "1"}, True, 1.0)


def test_the_environment_overrides_the_policy_by_default() -> None:
    environ = {"ENDPOINT": "https://env:1", "PROTOCOL": "http/protobuf", "HEADERS": "a=1"}
    assert route(environ=environ).collector == Collector("http/protobuf", "env:1", True)
    explicit = route(environ=environ, envPolicy={"mode": "Optional", "precedence": "ExplicitFirst"})
    assert explicit.collector == Collector("grpc", "collector:4317", False)
    # Fields that the policy does not have come from the environment.
    assert explicit.headers == {"a": "1"}


@pytest.mark.parametrize(
    ("reason", "endpoint"),
    [
        ("", "mine:2"),
        ("EnvDisabledByPolicy", "collector:4317"),
        ("SignalOverridesDisallowed", "all:1"),
        ("MultipleBackendsForSignal", "collector:4317"),
    ],
)
def test_reasons_that_only_ignore_variables(reason: str, endpoint: str) -> None:
    environ = {"ENDPOINT": "http://all:1", "TRACES_ENDPOINT": "http://mine:2"}
    result = route(environ=environ, traces={"enabled": True, "blockedReasons": [reason] if reason else None})
    assert (result.collector.endpoint, result.why_not) == (endpoint, "")


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"enabled": False}, "it is not enabled"),
        ({"enabled": True, "blockedReasons": ["RequiredEnvMissing"]}, "blocked: RequiredEnvMissing"),
        ({"enabled": True, "missingFields": ["endpoint"]}, "not configured: endpoint"),
    ],
)
def test_reasons_that_block_a_signal(policy: dict[str, Any], reason: str) -> None:
    assert route(traces=policy).why_not == reason
    assert route("logs", traces=policy).why_not == ""


@pytest.mark.parametrize(
    ("reasons", "usable"),
    [
        ([], True),
        (["EnvDisabledByPolicy", "SignalOverridesDisallowed"], True),
        (["MultipleBackendsForSignal"], False),
        (["RequiredEnvMissing"], False),
    ],
)
def test_metrics_are_pushed_if_no_reason_blocks(reasons: list[str], usable: bool) -> None:
    assert usable_for_metrics(backend(metrics={"enabled": True, "blockedReasons": reasons}).metrics) is usable
    assert not usable_for_metrics(None)


def test_tls_depends_on_the_scheme_else_on_the_variable() -> None:
    assert route(environ={"ENDPOINT": "http://c:1", "INSECURE": "false"}).collector.tls is False
    assert route(environ={"ENDPOINT": "https://c:1", "INSECURE": "true"}).collector.tls is True
    assert route(environ={"ENDPOINT": "c:1", "INSECURE": "false"}).collector.tls is True
    assert route(environ={"INSECURE": "true"}, useHTTPS=True).collector.tls is False
    assert route(environ={"INSECURE": "perhaps"}, useHTTPS=True).collector.tls is True


def test_paths_of_urls() -> None:
    http = {"PROTOCOL": "http/protobuf"}
    assert route(environ={**http, "ENDPOINT": "http://c:1"}).path == "/v1/traces"
    assert route(environ={**http, "ENDPOINT": "http://c:1/in"}).path == "/in/v1/traces"
    assert route(environ={**http, "TRACES_ENDPOINT": "http://c:1"}).path == "/"
    assert route(environ={**http, "TRACES_ENDPOINT": "http://c:1/mine"}).path == "/mine"
    # gRPC has no paths: such an endpoint is ignored.
    assert route(environ={"ENDPOINT": "http://c:1/in"}).collector.endpoint == "collector:4317"


def test_secrets_are_not_printed() -> None:
    result = route(environ={"HEADERS": "a=secret", "CLIENT_CERTIFICATE": "/c", "CLIENT_KEY": "/private"})
    assert "secret" not in f"{result} {result!r}"
    assert "/private" not in repr(result)
