"""All options of kuma-dp's `run` and `wait` exist under the same names, with the same defaults."""

from __future__ import annotations

import pytest

from kumadp.settings.model import Settings, options, options_of, secret_variables
from kumadp.settings.resolve import resolve
from kumadp.settings.values import read_value, write_value

# kuma-dp 2.14.3 (2.8.8 has some of them): flags, variable and default as in `kuma-dp run --help` and its config.
RUN = [
    ("--log-level", "", "info"),
    ("--log-output-path", "", ""),
    ("--log-max-retained-files", "", "1000"),
    ("--log-max-size", "", "100"),
    ("--log-max-age", "", "30"),
    ("--cp-address", "KUMA_CONTROL_PLANE_URL", "https://localhost:5678"),
    ("--ca-cert-file", "KUMA_CONTROL_PLANE_CA_CERT_FILE", ""),
    ("", "KUMA_CONTROL_PLANE_CA_CERT", ""),
    ("--skip-verify", "KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY", "false"),
    ("", "KUMA_CONTROL_PLANE_RETRY_BACKOFF", "3s"),
    ("--name", "KUMA_DATAPLANE_NAME", ""),
    ("--mesh", "KUMA_DATAPLANE_MESH", ""),
    ("--proxy-type", "KUMA_DATAPLANE_PROXY_TYPE", "dataplane"),
    ("--drain-time", "KUMA_DATAPLANE_DRAIN_TIME", "30s"),
    ("", "KUMA_READINESS_PORT", "9902"),
    ("", "KUMA_DATAPLANE_RESILIENT_COMPONENT_BASE_BACKOFF", "5s"),
    ("", "KUMA_DATAPLANE_RESILIENT_COMPONENT_MAX_BACKOFF", "1m"),
    ("--binary-path", "KUMA_DATAPLANE_RUNTIME_BINARY_PATH", "envoy"),
    ("--config-dir", "KUMA_DATAPLANE_RUNTIME_CONFIG_DIR", ""),
    ("--work-dir", "KUMA_DATAPLANE_RUNTIME_WORK_DIR", ""),
    ("", "KUMA_DATAPLANE_RUNTIME_SOCKET_DIR", ""),
    ("--concurrency", "KUMA_DATAPLANE_RUNTIME_CONCURRENCY", "0"),
    ("--dataplane-token-file", "KUMA_DATAPLANE_RUNTIME_TOKEN_PATH", ""),
    ("--dataplane-token", "KUMA_DATAPLANE_RUNTIME_TOKEN", ""),
    ("--dataplane", "KUMA_DATAPLANE_RUNTIME_RESOURCE", ""),
    ("-d --dataplane-file", "KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH", ""),
    ("-v --dataplane-var", "DATAPLANERUNTIME_RESOURCEVARS", ""),
    ("--envoy-log-level", "KUMA_DATAPLANE_RUNTIME_ENVOY_LOG_LEVEL", ""),
    ("--envoy-component-log-level", "KUMA_DATAPLANE_RUNTIME_ENVOY_COMPONENT_LOG_LEVEL", ""),
    ("", "KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES", "0"),
    ("--metrics-cert-path", "KUMA_DATAPLANE_RUNTIME_METRICS_CERT_PATH", ""),
    ("--metrics-key-path", "KUMA_DATAPLANE_RUNTIME_METRICS_KEY_PATH", ""),
    ("", "KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION_REFRESH_INTERVAL", "1s"),
    ("", "KUMA_DATAPLANE_RUNTIME_DYNAMIC_SYSTEM_CA_PATH", ""),
    ("--bind-outbounds", "KUMA_DATAPLANE_RUNTIME_BIND_OUTBOUNDS", "false"),
    ("", "KUMA_DATAPLANE_RUNTIME_ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT", ""),
    ("", "KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED", "false"),
    ("", "KUMA_DATAPLANE_RUNTIME_IPV6_ENABLED", "true"),
    ("", "KUMA_DATAPLANE_RUNTIME_SPIRE_SUPPORTED", "false"),
    ("", "KUMA_DATAPLANE_RUNTIME_SPIRE_SOCKET_PATH", ""),
    ("", "KUMA_DATAPLANE_RUNTIME_STRICT_INBOUND_PORTS_ENABLED", "true"),
    ("", "KUMA_DATAPLANE_RUNTIME_OTEL_PIPE_ENABLED", "true"),
    ("", "KUMA_DATAPLANE_RUNTIME_REUSE_PORT_ENABLED", "true"),
    ("--transparent-proxy", "KUMA_DATAPLANE_RUNTIME_TRANSPARENT_PROXY", "false"),
    ("--transparent-proxy-config", "", ""),
    ("--dns-enabled", "KUMA_DNS_ENABLED", "true"),
    ("--dns-mode", "KUMA_DNS_MODE", "auto"),
    ("--dns-proxy-port", "KUMA_DNS_PROXY_PORT", "0"),
    ("--dns-coredns-port", "KUMA_DNS_CORE_DNS_PORT", "15053"),
    ("--dns-envoy-port", "KUMA_DNS_ENVOY_DNS_PORT", "15054"),
    ("--dns-coredns-path", "KUMA_DNS_CORE_DNS_BINARY_PATH", "coredns"),
    ("--dns-coredns-config-template-path", "KUMA_DNS_CORE_DNS_CONFIG_TEMPLATE_PATH", ""),
    ("--dns-server-config-dir", "KUMA_DNS_CONFIG_DIR", ""),
    ("--dns-prometheus-port", "KUMA_DNS_PROMETHEUS_PORT", "19153"),
    ("--dns-enable-logging", "KUMA_DNS_ENABLE_LOGGING", "false"),
    ("", "KUMA_APPLICATION_PROBE_PROXY_PORT", "0"),
    ("", "POD_NAME", ""),
    ("", "POD_NAMESPACE", ""),
    ("", "HOST_IP", ""),
    ("", "INSTANCE_IP", ""),
]
# Different on purpose: retries have no limit.
OTHER_DEFAULT = [("", "KUMA_CONTROL_PLANE_RETRY_MAX_DURATION", None)]
WAIT = [
    ("--log-level", "", "info"),
    ("--log-output-path", "", ""),
    ("--log-max-retained-files", "", "1000"),
    ("--log-max-size", "", "100"),
    ("--log-max-age", "", "30"),
    ("--check-frequency", "", "1s"),
    ("--timeout", "", "180s"),
    ("--request-timeout", "", "500ms"),
    ("--unix-socket", "", ""),
    ("--url", "", ""),
]
# envconfig's second name of a field: its path in kuma-dp's structure, then the variable.
LONG = {
    "DATAPLANE_KUMA_READINESS_PORT": "readiness_port",
    "CONTROLPLANE_KUMA_CONTROL_PLANE_URL": "cp_address",
    "CONTROLPLANE_RETRY_KUMA_CONTROL_PLANE_RETRY_BACKOFF": "retry_backoff",
    "DATAPLANERUNTIME_KUMA_DATAPLANE_RUNTIME_TOKEN": "token",
    "DATAPLANERUNTIME_METRICS_KUMA_DATAPLANE_RUNTIME_METRICS_CERT_PATH": "metrics_cert_path",
    "DATAPLANERUNTIME_RESOURCES_KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES": "max_memory_bytes",
    "DATAPLANERUNTIME_SPIRE_KUMA_DATAPLANE_RUNTIME_SPIRE_SOCKET_PATH": "spire_socket_path",
    "DATAPLANERUNTIME_KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION"
    "_KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION_REFRESH_INTERVAL": "dynconf_refresh_interval",
    "DNS_KUMA_DNS_CORE_DNS_PORT": "coredns_port",
    "APPLICATIONPROBEPROXYSERVER_KUMA_APPLICATION_PROBE_PROXY_PORT": "application_probe_proxy_port",
}


@pytest.mark.parametrize(
    ("command", "flags", "variable", "default"),
    [("run", *row) for row in RUN + OTHER_DEFAULT] + [("wait", *row) for row in WAIT],
)
def test_kuma_dp_s_options_are_known(command: str, flags: str, variable: str, default: str | None) -> None:
    by_name = {name: option for option in options_of(command) for name in (*option.flags, *option.variables)}
    results = [by_name.get(name) for name in (*flags.split(), variable) if name]
    assert results[0] is not None
    assert results == [results[0]] * len(results), "flag and variable are the same option"
    assert results[0].default == (None if default is None else read_value(results[0].kind, default))


def test_each_name_is_declared_once() -> None:
    for command in ("run", "wait"):
        names = [name for option in options_of(command) for name in (*option.flags, *option.read_variables)]
        assert len(names) == len(set(names))
    keys = [option.key for option in options() if option.key]
    assert len(keys) == len(set(keys))


def test_every_default_is_within_its_own_bounds() -> None:
    for option in options():
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            assert option.minimum is None or option.default >= option.minimum, option.field
            assert option.maximum is None or option.default <= option.maximum, option.field
        assert not option.choices or option.default in option.choices, option.field


@pytest.mark.parametrize(("variable", "field"), LONG.items())
def test_the_long_names_of_envconfig_are_read(variable: str, field: str) -> None:
    option = next(option for option in options() if option.field == field)
    text = {"integer": "17", "duration": "17s", "text": "http://somewhere"}[option.kind]
    short = {option.variables[0]: {"http://somewhere": "http://else"}.get(text, "18" + text[2:])}
    settings = resolve("run", {"name": "web", "mesh": "default"}, {variable: text, **short}).settings
    assert getattr(settings, field) == read_value(option.kind, text), "kuma-dp reads the long name first"


def test_no_child_sees_a_secret_under_any_name() -> None:
    assert secret_variables() == {
        "KUMA_DATAPLANE_RUNTIME_TOKEN",
        "DATAPLANERUNTIME_KUMA_DATAPLANE_RUNTIME_TOKEN",
        # No settings of ours: what collectors know a sender by.
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    }


def test_options_without_a_variable_of_kuma_have_one_of_ours() -> None:
    own = {option.field: option for option in options() if not option.variables[0].startswith(("KUMA_", "KUMADP_"))}
    assert set(own) <= {"pod_name", "pod_namespace", "host_ip", "instance_ip", "dataplane_vars"}
    for option in options():
        if option.variables[0].startswith("KUMADP_"):
            assert option.variables == ("KUMADP_" + option.flags[0][2:].upper().replace("-", "_"),)
    assert {name for option in options() if option.group == "kumadp's own" for name in option.variables} >= {
        *("KUMADP_CONFIG", "KUMADP_STANDALONE", "KUMADP_XDS_RELAY", "KUMADP_VIRTUAL_PROBES", "KUMADP_ON_PARENT_DEATH"),
    }


TEXTS = {"integer": "17", "duration": "17s", "boolean": "true", "texts": "a,b", "integers": "17,18", "text": "/x/y"}


@pytest.mark.parametrize("field", [item.field for item in options() if item.variables[0].startswith("KUMADP_")])
def test_each_of_our_variables_is_read_after_the_flag_and_before_the_file(field: str) -> None:
    option = next(option for option in options() if option.field == field)
    command = option.commands[0]
    given: dict[str, object] = {"name": "web", "mesh": "default"} if command == "run" else {}
    if field == "standalone":
        given = {}
    text = next((entry for entry in option.choices if entry != option.default), TEXTS[option.kind])
    if field == "use_uvloop":
        text = "false"
    resolved = resolve(command, given, {option.variables[0]: text})
    assert getattr(resolved.settings, field) == read_value(option.kind, text) != option.default
    assert resolved.origin[field] == f"variable {option.variables[0]}"
    written = str(write_value(option.kind, option.default)) if option.default else text
    flag: object = (written,) if option.kind == "texts" else written
    both = resolve(command, {**given, field: flag}, {option.variables[0]: text})
    assert both.origin[field] == f"flag {option.flags[0]}"
    assert not any("kuma-dp would" in warning for warning in both.warnings)


def test_help_shows_choices_and_kinds() -> None:
    shown = {option.field: option.placeholder for option in options()}
    assert shown["virtual_probes"] == "[auto|on|off]"
    assert shown["envoy_log_level"] == "[trace|debug|info|warning|warn|error|critical|off]"
    assert shown["drain_time"] == "DURATION"
    for option in options():
        assert (option.placeholder[0] == "[") is bool(option.choices)
        named = option.field.endswith(("_path", "_dir", "_file", "_log")) or option.field in {"config", "standalone"}
        assert (option.placeholder == "PATH") is (
            named or option.field in {"transparent_proxy_config", "unix_socket"}
        ), option.field


def test_settings_are_all_options() -> None:
    assert set(Settings.__struct_fields__) == {option.field for option in options()}
