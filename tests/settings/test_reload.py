"""Each option declares whether a reload applies it, and a reload applies only those."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import msgspec.structs
import pytest

from kumadp.settings.model import Settings, options, options_of
from kumadp.settings.option import option as declare
from kumadp.settings.reload import reloadable, reloaded

if TYPE_CHECKING:
    from kumadp.settings.option import Option

# Read whenever they are needed, not once at start; the code that reads them is named.
APPLIED = {
    # Envoy's command line, made for each epoch (envoy/launch.py).
    *("binary_path", "concurrency", "drain_time", "envoy_args", "envoy_component_log_level", "envoy_log_level"),
    # The bootstrap request and its connection, for each attempt (controlplane/bootstrap_client.py).
    *("ca_cert", "ca_cert_file", "cp_address", "host_ip", "ipv6_enabled", "max_memory_bytes", "metrics_cert_path"),
    *("metrics_key_path", "retry_backoff", "skip_verify", "spire_socket_path", "spire_supported"),
    *("strict_inbound_ports", "system_ca_path", "token", "token_path", "unified_resource_naming"),
    # The resource and the settings, read again by the reload itself (cli/run.py).
    *("config", "dataplane", "dataplane_file", "dataplane_vars"),
    # The guard and the stats of each bootstrap (bootstrap/prepare.py), the hot restart (envoy/part.py).
    *("strict_admin", "stat_tags", "deferred_stats", "reload_deadline"),
    # What to do when something changes (controlplane/, core/context.py, daemon/file_changes.py).
    *("bootstrap_check_interval", "on_bootstrap_change", "on_control_plane_refusal", "on_file_change"),
    # The drain and the end (daemon/run.py, daemon/application.py).
    *("min_drain_time", "pre_drain_delay", "application_grace", "termination_log"),
    # Each request of the application probe proxy (probes/targets.py).
    "probe_proxy_ports",
}
OTHER: dict[str, Any] = {
    "text": "other",
    "integer": 7,
    "duration": 7.5,
    "texts": ("other",),
    "integers": (7,),
    "pairs": {"other": "value"},
}


def other_value(option: Option) -> Any:
    """A value of the option's kind that is not its default."""
    return not option.default if option.kind == "boolean" else OTHER[option.kind]


def test_each_option_declares_whether_it_is_reloadable() -> None:
    assert inspect.signature(declare).parameters["reload"].default is inspect.Parameter.empty
    assert all(isinstance(option.reload, bool) for option in options())


def test_reloadable_options_are_those_read_when_needed() -> None:
    assert reloadable() == APPLIED
    # `wait` has no reload.
    assert not any(option.reload for option in options() if "run" not in option.commands)


@pytest.mark.parametrize("field", sorted(APPLIED))
def test_a_reload_applies_it(field: str) -> None:
    option = next(option for option in options_of("run") if option.field == field)
    new = msgspec.structs.replace(Settings(), **{field: other_value(option)})
    assert reloaded(Settings(), new) == (new, ())


@pytest.mark.parametrize("field", sorted(item.field for item in options_of("run") if item.field not in APPLIED))
def test_another_option_keeps_its_value_and_needs_a_restart(field: str) -> None:
    option = next(option for option in options_of("run") if option.field == field)
    new = msgspec.structs.replace(Settings(), **{field: other_value(option)})
    assert reloaded(Settings(), new) == (Settings(), (option.name,))


def test_both_at_once() -> None:
    current = Settings(drain_time=10, stop_grace=1, name="web")
    new = Settings(drain_time=20, stop_grace=2, name="web")
    assert reloaded(current, new) == (Settings(drain_time=20, stop_grace=1, name="web"), ("--stop-grace",))


def test_help_marks_reloadable_options() -> None:
    for option in options_of("run"):
        assert option.help_text.endswith(" (reload)") is (option.field in APPLIED)
