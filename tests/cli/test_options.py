"""How commands read their options: names as typed, booleans, log flags in front of the command, the rest after --."""

from __future__ import annotations

from typing import Any

import click
import pytest

from kumadp.cli.options import _as_pflag, command_line, command_with_options, keep_log_flags, log_options, typed_names
from kumadp.errors import UsageError
from kumadp.settings.model import options_of


@command_with_options("run", "probe", takes_command=True)
def probe(**flags: object) -> dict[str, Any]:
    """Return what the options are."""
    given = {field: value for field, value in flags.items() if value not in {None, ()}}
    return {"given": given, "typed": dict(typed_names()), "rest": command_line()}


def read(*arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = probe.main(list(arguments), standalone_mode=False)
    return result


def test_each_option_by_the_name_that_was_typed() -> None:
    assert read("-d", "web.yaml", "--config-dir=/work", "--drain-time", "5s") == {
        "given": {"dataplane_file": "web.yaml", "work_dir": "/work", "drain_time": "5s"},
        "typed": {"dataplane_file": "-d", "work_dir": "--config-dir", "drain_time": "--drain-time"},
        "rest": (),
    }


@pytest.mark.parametrize(("argument", "value"), [("--dns-enabled", "true"), ("--dns-enabled=false", "false")])
def test_a_boolean_with_and_without_a_value(argument: str, value: str) -> None:
    assert read(argument)["given"] == {"dns_enabled": value}


def test_a_short_flag_with_an_equals_sign_as_in_pflag() -> None:
    assert read("-d=web.yaml", "-v=a=b", "-v", "c=d")["given"] == {
        "dataplane_file": "web.yaml",
        "dataplane_vars": ("a=b", "c=d"),
    }
    chosen = options_of("run")
    assert _as_pflag(chosen, ["-d=a", "-x=a", "--", "-d=a"]) == ["-da", "-x=a", "--", "-d=a"]


def test_a_command_line_after_two_dashes() -> None:
    assert read("--name=web", "--", "python", "-m", "http.server", "--name=db") == {
        "given": {"name": "web"},
        "typed": {"name": "--name"},
        "rest": ("python", "-m", "http.server", "--name=db"),
    }
    with pytest.raises(UsageError, match="nothing follows --"):
        read("--name=web", "--")


def test_log_flags_in_front_of_the_command_do_not_override_those_behind_it() -> None:
    with click.Context(click.Group()) as group:
        keep_log_flags(group, {"log_level": "debug", "log_max_age": None, "log_format": "json"})
        with probe.make_context("probe", ["--log-level=error"], parent=group) as context:
            assert context.params["log_level"] == "error"
            assert context.params["log_format"] == "json"
            assert dict(typed_names()) == {"log_level": "--log-level", "log_format": "--log-format"}
    assert {option.field for option in log_options()} >= {"log_level", "log_output_path"}


def test_help_has_its_groups_and_options_without_a_flag() -> None:
    text = probe.get_help(click.Context(probe, info_name="probe"))
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[-2:] == ["Set by variable or settings file only:", "Other:"]
    assert "KUMA_CONTROL_PLANE_RETRY_BACKOFF" in text
    assert text.startswith("Usage: probe [OPTIONS] [-- CMD ARG...]")
