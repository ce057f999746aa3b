"""`kumadp upgrade-check` of the samples, whose verdicts are known."""

from __future__ import annotations

import json

from tests.support.command import ROOT, kumadp

SETTINGS = "--config=configs/kumadp.yaml"


def test_what_is_refused() -> None:
    done = kumadp("upgrade-check", SETTINGS, "configs/dataplane.yaml", "--to=3.0", cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "configs/dataplane.yaml:30: networking.outbound[0].backendRef" in done.stdout
    assert "with Kuma 3.0: 2 refused, 0 ignored, " in done.stdout
    done = kumadp("upgrade-check", SETTINGS, "configs/dataplane.yaml", "--to=2.14", cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "with Kuma 2.14: 0 refused, 0 ignored, 0 needed\n")


def test_the_sample_for_all_versions_as_json() -> None:
    files = ("configs/dataplane-kuma3.yaml", "configs/zone-proxy.yaml")
    done = kumadp("upgrade-check", SETTINGS, *files, "--dns-envoy-port=1054", "-o", "json", cwd=ROOT)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert (found["kuma"], found["ok"]) == ("3.0", True)
    assert {"effect": "ignored", "where": "--dns-envoy-port", "text": "without effect with Kuma 3"} in found["findings"]


def test_nothing_to_compare() -> None:
    done = kumadp("upgrade-check")
    assert done.returncode == 78
    assert "neither a Dataplane nor a name is given" in done.stderr
