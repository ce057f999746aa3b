"""OTEL_ variables: how they are read, and the inventory for the control plane."""

from __future__ import annotations

import json

import pytest

from kumadp.otel.environment import inventory, read_environment

PREFIX = "OTEL_EXPORTER_OTLP_"


def test_blank_variables_are_not_listed() -> None:
    assert inventory(read_environment({PREFIX + "ENDPOINT": "  ", "OTHER": "x"})) == {"pipeEnabled": True}


def test_the_inventory_lists_variables_without_their_values() -> None:
    environ = {
        PREFIX + "ENDPOINT": "https://secret-host:4317",
        PREFIX + "HEADERS": "api-key=secret-key",
        PREFIX + "TRACES_PROTOCOL": "http/protobuf",
        PREFIX + "TRACES_HEADERS": "api-key=secret-key",
        PREFIX + "LOGS_CERTIFICATE": "/secret-path",
        PREFIX + "METRICS_CLIENT_CERTIFICATE": "/secret-cert",
        PREFIX + "METRICS_CLIENT_KEY": "/secret-key",
    }
    entries = inventory(read_environment(environ))
    assert "secret" not in json.dumps(entries)
    assert entries == {
        "pipeEnabled": True,
        "shared": {
            "signal": "shared",
            "endpointPresent": True,
            "endpointParsedAsURL": True,
            "headersPresent": True,
            "effectiveAuthMode": "headers",
        },
        "traces": {
            "signal": "traces",
            "protocolPresent": True,
            "headersPresent": True,
            "effectiveProtocol": "http/protobuf",
            "effectiveAuthMode": "headers",
            # Headers are those of all signals.
            "overrideKinds": ["protocol"],
        },
        "logs": {
            "signal": "logs",
            "certificatePresent": True,
            "effectiveAuthMode": "tls",
            "overrideKinds": ["certificate"],
        },
        "metrics": {
            "signal": "metrics",
            "clientCertificatePresent": True,
            "clientKeyPresent": True,
            "effectiveAuthMode": "mtls",
            "overrideKinds": ["clientCertificate", "clientKey"],
        },
    }


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("PROTOCOL", "http/json", "shared.protocol"),
        ("ENDPOINT", "http://host:4317/path", "shared.endpoint"),
        ("COMPRESSION", "zstd", "shared.compression"),
        ("TIMEOUT", "10s", "shared.timeout"),
        ("CLIENT_KEY", "/key", "shared.mtls"),
    ],
)
def test_invalid_values_are_listed(name: str, value: str, error: str) -> None:
    entries = inventory(read_environment({PREFIX + name: value}))
    assert entries["validationErrors"] == entries["shared"]["validationErrors"] == [error]


def test_a_path_is_valid_for_http() -> None:
    environ = {PREFIX + "PROTOCOL": "http/protobuf", PREFIX + "LOGS_ENDPOINT": "http://host/in"}
    entries = inventory(read_environment(environ))
    assert "validationErrors" not in entries
    assert entries["logs"]["endpointHasPath"] is True


def test_headers_are_pairs_with_percent_encoded_values() -> None:
    variables = read_environment({PREFIX + "HEADERS": "api-key=a%20b, x = y=z,nothing,=no"}).shared
    assert variables.headers == {"api-key": "a b", "x": "y=z"}


def test_secrets_are_the_values_of_headers_as_set_and_as_sent() -> None:
    environ = {PREFIX + "HEADERS": "a=one%20two", PREFIX + "LOGS_HEADERS": "b=three"}
    assert {"one%20two", "one two", "three"} <= set(read_environment(environ).secrets())


@pytest.mark.parametrize(("text", "seconds"), [("1500", 1.5), ("0", 0.0), ("-1", None), ("1.5", None), ("10s", None)])
def test_timeouts_are_milliseconds(text: str, seconds: float | None) -> None:
    assert read_environment({PREFIX + "TIMEOUT": text}).shared.timeout == seconds
