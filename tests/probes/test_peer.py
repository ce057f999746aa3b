"""The same table against a real kuma-dp; the table states where kuma-dp differs from kumadp.

Needs KUMA_CP, a kuma-cp, and KUMADP_BENCH_PEER, a kuma-dp of the same version; seen with 2.13.5.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.probes.test_application_proxy import LIKE_KUBELET, assert_seen, send_probe
from tests.support.daemon import Ports, is_listening
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.probe_table import TABLE, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.applications import Applications

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    binary = os.environ.get("KUMADP_BENCH_PEER")
    if not binary:
        pytest.skip("no kuma-dp to compare with: set KUMADP_BENCH_PEER")
    folder: Path = tmp_path_factory.mktemp("peer")
    ports, port = Ports.take(), free_port()
    with control_plane(folder / "cp") as plane, (folder / "dp.log").open("wb") as log:
        file = folder / "dp.json"
        file.write_text(json.dumps(plane.real.suit(dataplane("peer-1", "peer", ports, 1, probes=False))))
        process = subprocess.Popen(
            [binary, "run", *plane.arguments, f"--dataplane-file={file}", f"--binary-path={need_envoy()}"],
            env={
                **os.environ,
                "KUMA_APPLICATION_PROBE_PROXY_PORT": str(port),
                "KUMA_READINESS_PORT": str(ports.readiness),
                "KUMA_DATAPLANE_DRAIN_TIME": "100ms",
                "KUMA_DNS_ENABLED": "false",
            },
            stdout=log,
            stderr=log,
            cwd=folder,
        )
        try:
            poll(lambda: is_listening(port), what="the peer's probe proxy")
            yield port
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_the_table(peer: int, apps: Applications, row: Row) -> None:
    status, body, headers = send_probe(peer, row, apps.path(row.path))
    code, word = row.peer or (row.code, row.word)
    assert status == code
    if word:
        assert body == word + "\n"
        assert (headers["content-type"], headers["x-content-type-options"]) == ("text/plain; charset=utf-8", "nosniff")


def test_the_application_receives_the_same_request(peer: int, apps: Applications) -> None:
    assert send_probe(peer, LIKE_KUBELET, apps.path(LIKE_KUBELET.path))[0] == 200
    assert_seen(apps.web.seen[-1])
    # kuma-dp uses this source address even if nothing is redirected.
    assert apps.web.seen[-1]["from"] == "127.0.0.6"
