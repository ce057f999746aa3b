"""Each alert of configs/alerts.yaml fires in its case, and not in a similar case without a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus import promtool

ALERTS = Path(__file__).resolve().parent.parent.parent / "configs" / "alerts.yaml"

Series = dict[str, str]

# For each alert: series (a value each minute) with which it fires after 30 minutes, and with which it does not.
# Time begins in 1970 here.
CASES: dict[str, tuple[Series, Series]] = {
    "KumadpNotReady": ({"kumadp_ready": "1x26 0x4"}, {"kumadp_ready": "1x28 0 1"}),
    "KumadpEnvoyRestarting": (
        {
            'kumadp_child_restarts_total{child="envoy", reason="signal"}': "0x24 1x6",
            'kumadp_child_restarts_total{child="envoy", reason="out_of_memory"}': "0x27 1x3",
        },
        {
            'kumadp_child_restarts_total{child="envoy", reason="asked"}': "0x24 5x6",
            'kumadp_child_restarts_total{child="envoy", reason="signal"}': "0x24 1x6",
        },
    ),
    "KumadpCoreDnsRestarting": (
        {'kumadp_child_restarts_total{child="coredns", reason="exit"}': "0x24 2x6"},
        {'kumadp_child_restarts_total{child="coredns", reason="exit"}': "7x31"},
    ),
    "KumadpPartGone": ({"kumadp_fatal_parts": "0x29 1"}, {"kumadp_fatal_parts": "0x30"}),
    "KumadpControlPlaneAway": ({"kumadp_relay_connected": "1x23 0x7"}, {"kumadp_relay_connected": "1x27 0x3"}),
    "KumadpControlPlaneSilent": (
        {"kumadp_relay_silence_seconds": "0x27 40 100 160"},
        {"kumadp_relay_silence_seconds": "0x28 20 0"},
    ),
    "KumadpConfigurationStale": ({"kumadp_configuration_stale": "1x31"}, {"kumadp_configuration_stale": "1x10 0x20"}),
    "KumadpConfigurationRejected": (
        {'kumadp_configuration_rejections_total{type="Cluster"}': "0x28 1x2"},
        {'kumadp_configuration_rejections_total{type="Cluster"}': "3x31"},
    ),
    "KumadpTokenExpiresSoon": (
        {"kumadp_token_expiry_timestamp_seconds": "50000x31"},
        {"kumadp_token_expiry_timestamp_seconds": "90000x31"},
    ),
    "KumadpTokenExpiring": (
        {"kumadp_token_expiry_timestamp_seconds": "2300x31"},
        {"kumadp_token_expiry_timestamp_seconds": "2500x31"},
    ),
    "KumadpAccessLogsDropped": (
        {"kumadp_access_log_dropped_lines_total": "0x27 9x3"},
        {"kumadp_access_log_dropped_lines_total": "9x31"},
    ),
    "KumadpLogLinesDropped": (
        {"kumadp_log_lines_dropped_total": "0x27 9x3"},
        {"kumadp_log_lines_dropped_total": "9x31"},
    ),
    "KumadpDynamicConfigurationFails": (
        {'kumadp_dynconf_failures_total{path="/dns"}': "0x25 1 2 3 4 5"},
        {'kumadp_dynconf_failures_total{path="/dns"}': "0x25 1x5"},
    ),
    "KumadpManyDescriptors": (
        {"kumadp_process_open_fds": "900x31", "kumadp_process_max_fds": "1024x31"},
        {"kumadp_process_open_fds": "100x31", "kumadp_process_max_fds": "1024x31"},
    ),
    "KumadpEventLoopLate": (
        {
            'kumadp_event_loop_lag_seconds_bucket{le="0.25"}': "0+1x30",
            'kumadp_event_loop_lag_seconds_bucket{le="1.0"}': "0+10x30",
            'kumadp_event_loop_lag_seconds_bucket{le="+Inf"}': "0+10x30",
        },
        {
            'kumadp_event_loop_lag_seconds_bucket{le="0.25"}': "0+10x30",
            'kumadp_event_loop_lag_seconds_bucket{le="1.0"}': "0+10x30",
            'kumadp_event_loop_lag_seconds_bucket{le="+Inf"}': "0+10x30",
        },
    ),
}


def rules() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}


def test_each_alert_has_a_case() -> None:
    assert set(CASES) == set(rules())


def test_each_alert_has_a_severity_and_a_description() -> None:
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert set(rule["annotations"]) == {"summary", "description"}, name


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", str(ALERTS))


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_only_in_its_case(tmp_path: Path, name: str) -> None:
    fires, does_not_fire = CASES[name]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name_of_series, "values": values} for name_of_series, values in series.items()],
            # The number of alerts, whatever their labels.
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)',
                    "eval_time": "30m",
                    "exp_samples": [{"labels": "{}", "value": number}],
                }
            ],
        }
        for series, number in ((fires, 1), (does_not_fire, 0))
    ]
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "30s", "tests": tests}))
    promtool("test", "rules", str(cases))
