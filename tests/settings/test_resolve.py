"""Flag, then variable, then file, then default; all problems at once, by the name that the user typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec.structs
import pytest

from kumadp.errors import Problem, SettingsError
from kumadp.settings.display import display
from kumadp.settings.given import parse
from kumadp.settings.model import options
from kumadp.settings.resolve import Resolved, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMED = {"name": "web", "mesh": "default"}
TOKEN = "eyJhbGciOiJSUzI1NiJ9.secret.part"


def run(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    text: str | None = None,
    typed: Mapping[str, str] | None = None,
) -> Resolved:
    return resolve("run", {**NAMED, **(flags or {})}, environ or {}, text, "kumadp.yaml", typed)


def problems(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    text: str | None = None,
    typed: Mapping[str, str] | None = None,
) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        resolve("run", flags or {}, environ or {}, text, "kumadp.yaml", typed)
    return [str(problem) for problem in caught.value.problems]


def bare(**flags: object) -> dict[str, object]:
    return {**NAMED, **flags}


VARIABLE = {"KUMA_DATAPLANE_DRAIN_TIME": "20s"}
FILE = "dataplane:\n  drainTime: 10s\n"


@pytest.mark.parametrize(
    ("flags", "environ", "text", "value", "origin"),
    [
        ({"drain_time": "40s"}, VARIABLE, FILE, 40.0, "flag --drain-time"),
        ({}, VARIABLE, FILE, 20.0, "variable KUMA_DATAPLANE_DRAIN_TIME"),
        ({}, {}, FILE, 10.0, "file kumadp.yaml:2: dataplane.drainTime"),
        ({}, {}, None, 30.0, "default"),
        ({}, {"KUMA_DATAPLANE_DRAIN_TIME": ""}, FILE, 10.0, "file kumadp.yaml:2: dataplane.drainTime"),
        ({}, {"KUMA_DATAPLANE_DRAIN_TIME": ""}, None, 30.0, "default"),
    ],
)
def test_flag_then_variable_then_file_then_default(
    flags: dict[str, object], environ: dict[str, str], text: str | None, value: float, origin: str
) -> None:
    resolved = run(flags, environ, text)
    assert resolved.settings.drain_time == value
    assert resolved.origin["drain_time"] == origin


def test_a_flag_that_overrides_a_variable_is_a_warning() -> None:
    assert run({"drain_time": "40s"}, VARIABLE).warnings == (
        "flag --drain-time takes precedence over variable KUMA_DATAPLANE_DRAIN_TIME=20s;"
        " kuma-dp would use the variable: remove one of them",
    )


def test_no_warning_where_flag_and_variable_mean_the_same() -> None:
    assert run({"drain_time": "0.5m"}, {"KUMA_DATAPLANE_DRAIN_TIME": "30s"}).warnings == ()


def test_no_secret_in_the_warning() -> None:
    resolved = run({"token": TOKEN}, {"KUMA_DATAPLANE_RUNTIME_TOKEN": TOKEN + "2"})
    assert len(resolved.warnings) == 1
    assert "KUMA_DATAPLANE_RUNTIME_TOKEN=***" in resolved.warnings[0]
    assert TOKEN not in resolved.warnings[0]


def test_no_document_in_the_warning() -> None:
    whole = "type: Dataplane\n" * 5
    resolved = resolve("run", {"dataplane": "{}"}, {"KUMA_DATAPLANE_RUNTIME_RESOURCE": whole})
    assert "RESOURCE=<80 characters>;" in resolved.warnings[0]


@pytest.mark.parametrize(
    "name",
    ["KUMA_READINESS_PORT", "KUMA_DNS_ENABLED", "KUMA_DATAPLANE_DRAIN_TIME", "KUMA_CONTROL_PLANE_URL", "POD_NAME"],
)
def test_set_but_empty_counts_as_unset(name: str) -> None:
    assert run(environ={name: ""}).settings == run().settings


def test_the_older_name_of_a_variable_is_read_after_the_newer() -> None:
    old, new = "KUMA_DATAPLANE_RUNTIME_CONFIG_DIR", "KUMA_DATAPLANE_RUNTIME_WORK_DIR"
    assert run(environ={old: "/old"}).settings.work_dir == "/old"
    assert run(environ={old: "/old", new: "/new"}).settings.work_dir == "/new"
    assert run(environ={old: "/old", new: ""}).settings.work_dir == "/old"


def test_every_problem_at_once_by_the_name_that_was_typed() -> None:
    results = problems(
        {"log_level": "degub", "drain_time": "30", "concurrency": "1.5", "dataplane_vars": ("foo", "a=b")},
        {"KUMA_READINESS_PORT": "99999", "KUMA_DNS_ENABLED": "y", "KUMA_CONTROL_PLANE_RETRY_BACKOFF": "-1s"},
        "dns:\n  prometheusPort: -1\n  coreDnsLogging: yes\n",
        {"dataplane_vars": "-v"},
    )
    assert results == [
        "kumadp.yaml:3: dns.coreDnsLogging: 'yes' is not a boolean, write true or false",
        "--log-level: 'degub' is not known (did you mean debug?)",
        "KUMA_CONTROL_PLANE_RETRY_BACKOFF: -1s is too small (at least 1ms)",
        "--drain-time: '30' is not a duration, write one like 1m30s or 500ms; did you mean 30s?",
        "KUMA_READINESS_PORT: 99999 is too large (at most 65535)",
        "-v: 'foo' is not name=value",
        "--concurrency: '1.5' is not a whole number",
        "KUMA_DNS_ENABLED: 'y' is not a boolean, write true or false",
        "kumadp.yaml:2: dns.prometheusPort: -1 is too small (at least 0)",
        "--name: neither a Dataplane nor a name is given (give --dataplane-file, --name and --mesh, or --standalone)",
        "--mesh: no mesh is given (give --mesh or KUMA_DATAPLANE_MESH)",
    ]


def test_an_alias_is_named_as_typed() -> None:
    warnings = run({"work_dir": "/a"}, {"KUMA_DATAPLANE_RUNTIME_CONFIG_DIR": "/b"}, None, {"work_dir": "--config-dir"})
    assert warnings.warnings[0].startswith(
        "flag --config-dir takes precedence over variable KUMA_DATAPLANE_RUNTIME_CONFIG_DIR=/b;"
    )


def test_a_secret_that_is_wrong_is_not_shown() -> None:
    results = problems(bare(), {}, f"dataplaneRuntime:\n  token: [{TOKEN}]\n")
    assert results == ["kumadp.yaml:2: dataplaneRuntime.token: is not a string"]
    # No text is a wrong token by itself: a secret that is a number stands for those that can be wrong.
    token = next(option for option in options() if option.field == "token")
    message: list[Problem] = []
    assert parse(msgspec.structs.replace(token, kind="integer"), TOKEN, "flag --secret", message) is None
    assert [str(problem) for problem in message] == ["--secret: *** is not a whole number"]


@pytest.mark.parametrize("field", ["binary_path", "coredns_path", "cp_address", "proxy_type"])
def test_options_that_may_not_be_empty(field: str) -> None:
    results = problems(bare(**{field: ""}))
    assert len(results) == 1
    assert f"--{field}".replace("_", "-").replace("--coredns", "--dns-coredns") in results[0]


@pytest.mark.parametrize(
    "address",
    [
        "localhost:5678",
        "ftp://a",
        "https://",
        "https://:5678",
        "http://a:99999",
        "http://a:x",
        "http://[::1",
        "http://a b",
    ],
)
def test_an_invalid_address(address: str) -> None:
    results = problems(bare(cp_address=address))
    assert results == [
        f"--cp-address: {address!r} is not an http or https address (write one like https://control-plane:5678)"
    ]


def test_several_addresses_of_the_control_plane() -> None:
    settings = run(bare(cp_address="https://a:5678, http://b ,https://a:5678")).settings
    assert settings.cp_addresses == ("https://a:5678", "http://b")
    assert run(bare()).settings.cp_addresses == ("https://localhost:5678",)


def test_each_of_several_addresses_must_be_valid() -> None:
    hint = "is not an http or https address (write one like https://control-plane:5678)"
    assert problems(bare(cp_address="https://a:5678,,b:5678")) == [
        f"--cp-address: '' {hint}",
        f"--cp-address: 'b:5678' {hint}",
    ]


def test_values_of_a_list_are_bounded_each() -> None:
    assert problems(bare(virtual_probes_ports="80,70000,0")) == [
        "--virtual-probes-ports: 70000 is too large (at most 65535)",
        "--virtual-probes-ports: 0 is too small (at least 1)",
    ]


PODS = {"POD_NAME": "web-7f", "POD_NAMESPACE": "shop"}


@pytest.mark.parametrize(
    ("name", "environ", "expected"),
    [
        ("", PODS, "web-7f.shop"),
        (None, PODS, "web-7f.shop"),
        ("own", PODS, "own"),
        ("$(POD_NAME).shop", PODS, "web-7f.shop"),
        ("{web}", PODS, "web-7f.shop"),
        ("a)", PODS, "web-7f.shop"),
    ],
)
def test_the_name_of_the_pod(name: str | None, environ: dict[str, str], expected: str) -> None:
    assert resolve("run", {"name": name, "mesh": "default"}, environ).settings.name == expected
    assert resolve("wait", {"name": name}, environ).settings.name == expected


@pytest.mark.parametrize("environ", [{}, {"POD_NAME": "web-7f"}, {"POD_NAMESPACE": "shop"}, {**PODS, "POD_NAME": ""}])
def test_a_pod_name_without_a_namespace_is_not_used(environ: dict[str, str]) -> None:
    assert problems({"mesh": "default"}, environ)[0].startswith("--name: neither a Dataplane nor a name is given")


@pytest.mark.parametrize(("field", "value"), [("name", "$(NAME)"), ("mesh", "{m}")])
def test_a_placeholder_that_was_not_filled_in(field: str, value: str) -> None:
    assert problems(bare(**{field: value})) == [
        f"--{field}: {value!r} is not a valid name (is it an unresolved placeholder?)"
    ]


@pytest.mark.parametrize("field", ["name", "mesh"])
@pytest.mark.parametrize("value", ["a/b", "..", ".", ".hidden", "a b", "a\n", "é", "\x1b[31m"])
def test_an_invalid_name(field: str, value: str) -> None:
    (message,) = problems(bare(**{field: value}))
    assert "is not a valid name (use letters, digits, - and .)" in message
    assert message.isprintable()


def test_a_name_that_is_too_long() -> None:
    assert problems(bare(name="a" * 254)) == ["--name: is too long (at most 253 characters)"]


@pytest.mark.parametrize("given", [{"dataplane": "{}"}, {"dataplane_file": "dp.yaml"}])
def test_name_and_mesh_beside_a_dataplane(given: dict[str, object]) -> None:
    variable = {"KUMA_DATAPLANE_MESH": "default"}
    results = problems({"name": "web", **given}, variable)
    assert len(results) == 1
    assert results[0].startswith("--name and KUMA_DATAPLANE_MESH: name and mesh come from the given Dataplane")
    resolved = resolve("run", {"name": "", **given}, {**PODS, "KUMA_DATAPLANE_MESH": ""})
    assert resolved.settings.mesh == ""


def test_a_zone_proxy_needs_no_mesh() -> None:
    assert resolve("run", {"name": "zi", "proxy_type": "ingress"}, {}).settings.mesh == ""


def test_file_and_inline_dataplane_as_in_kuma() -> None:
    resolved = resolve("run", {"dataplane": "{}", "dataplane_file": "a"}, {})
    assert resolved.warnings == (
        "--dataplane-file takes precedence over --dataplane: both give a Dataplane, remove one of them",
    )


def test_standard_input_is_read_once() -> None:
    results = problems({"config": "-", "dataplane_file": "-"}, {}, "", {"dataplane_file": "-d"})
    assert results == ["--config and -d: both read stdin (use a file for one of them)"]
    given = {"dataplane_file": "-", "transparent_proxy_config": ("a.yaml", "-")}
    results = problems(given, {}, "", {"dataplane_file": "-d"})
    assert results == ["-d and --transparent-proxy-config: both read stdin (use a file for one of them)"]


def test_standalone_rejects_another_dataplane() -> None:
    results = problems({"standalone": "mesh", "dataplane_file": "a"})
    assert results == ["--standalone: reads the Dataplane from its own path (remove --dataplane-file)"]


def test_options_that_standalone_ignores() -> None:
    resolved = resolve("run", {"standalone": "mesh", "token": TOKEN}, {"KUMA_CONTROL_PLANE_URL": "https://cp:5678"})
    assert resolved.warnings == ("ignored in standalone mode: KUMA_CONTROL_PLANE_URL, --dataplane-token",)
    files = {"metrics_cert_path": "/c", "metrics_key_path": "/k", "system_ca_path": "/s"}
    assert resolve("run", {"standalone": "mesh", **files}, {}).warnings == (
        "ignored in standalone mode: --metrics-cert-path, --metrics-key-path, "
        "KUMA_DATAPLANE_RUNTIME_DYNAMIC_SYSTEM_CA_PATH",
    )
    coredns = {"dns_mode": "embedded", "coredns_path": "/c", "dns_config_dir": "/d"}
    assert resolve("run", {"standalone": "mesh", **coredns}, {}).warnings == (
        "ignored because the embedded resolver is used: --dns-coredns-path, --dns-server-config-dir",
    )


def test_options_without_effect_are_one_warning() -> None:
    backoff = "KUMA_DATAPLANE_RESILIENT_COMPONENT_MAX_BACKOFF"
    resolved = run({}, {backoff: "10s", "KUMA_DATAPLANE_RESILIENT_COMPONENT_BASE_BACKOFF": "5s"})
    assert resolved.warnings == (f"accepted, but without effect: {backoff}",)


def test_secrets_are_masked_in_display() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----"
    resolved = run(
        {"token": TOKEN, "drain_time": "90s", "dataplane_vars": ("a=b",)}, {"KUMA_CONTROL_PLANE_CA_CERT": pem}
    )
    assert display(resolved.settings) == {
        "KUMA_CONTROL_PLANE_CA_CERT": "<PEM>",
        "--name": "web",
        "--mesh": "default",
        "--drain-time": "1m30s",
        "--dataplane-var": "a:b",
        "--dataplane-token": "***",
    }


def test_a_dataplane_is_displayed_by_its_size() -> None:
    settings = resolve("run", {"dataplane": "type: Dataplane\nmesh: default\n"}, {}).settings
    assert display(settings) == {"--dataplane": "<30 characters>"}


def warnings(flags: Mapping[str, object], environ: Mapping[str, str] | None = None) -> str:
    return "\n".join(run(flags, environ).warnings)


def test_a_misspelled_variable_is_a_warning_and_another_is_not() -> None:
    assert warnings({}, {"KUMADP_XDS_RELYA": "off"}) == (
        "variable KUMADP_XDS_RELYA is unknown and ignored; did you mean KUMADP_XDS_RELAY?"
    )
    kubernetes = {"KUMADP_SERVICE_HOST": "10.0.0.1", "KUMADP_PORT_80_TCP": "tcp://10.0.0.1:80", "KUMADP_HANDOVER": "5"}
    assert warnings({}, kubernetes) == ""


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (
            {"ca_cert_file": "/ca"},
            {"KUMA_CONTROL_PLANE_CA_CERT": "x"},
            "KUMA_CONTROL_PLANE_CA_CERT takes precedence over --ca-cert",
        ),
        ({"token": TOKEN, "token_path": "/t"}, {}, "--dataplane-token takes precedence over --dataplane-token-file"),
        ({"skip_verify": "true", "ca_cert_file": "/ca"}, {}, "--skip-verify takes precedence over --ca-cert-file"),
        ({"dns_mode": "embedded", "coredns_path": "/c"}, {}, "the embedded resolver is used: --dns-coredns-path"),
        ({"dns_proxy_port": "53", "coredns_path": "/c"}, {}, "the embedded resolver is used: --dns-coredns-path"),
        ({"dns_enabled": "false", "coredns_config_template_path": "/c"}, {}, "DNS is off: --dns-coredns-config-templ"),
    ],
)
def test_options_that_are_overruled_are_a_warning(
    flags: dict[str, object], environ: dict[str, str], message: str
) -> None:
    assert message in warnings(flags, environ)
    assert TOKEN not in warnings(flags, environ)
