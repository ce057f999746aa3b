"""What an upgrade of the control plane costs: KUMA_CP is replaced by KUMA_CP_NEXT on the same port, under load.

Beside kumadp a kuma-dp (KUMADP_BENCH_PEER) of KUMA_CP's version, started for delta xDS, as Kuma advises beforehand.
Its token must stay good, as it reads it once: the key that signs tokens is taken along. The same for kumadp, once with
the token kept and once with a new one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.test_mesh import environment_of
from tests.bench.test_start import note
from tests.support.daemon import get
from tests.support.kuma_control_plane import get_json
from tests.support.needs import need_nft
from tests.support.poll import poll
from tests.support.rig import NAME
from tests.support.upgrade import open_upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.load_process import LoadReport
    from tests.support.upgrade import UpgradeRig

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("KUMADP_BENCH_ROUNDS", "3"))
RATE = 100.0
# How long the load goes on after the new control plane is there (seconds): kuma-dp registers within 20 s.
WATCHED = 25.0
DATA_PLANE_PORT = 5678
KEY = "/meshes/default/secrets/dataplane-token-signing-key-default-1"
DELTA = {"KUMA_DATAPLANE_RUNTIME_ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT": "DELTA_GRPC"}
KUMADP = [sys.executable, "-m", "kumadp"]


@contextlib.contextmanager
def closed(port: int) -> Iterator[None]:
    """Have connections to the port refused: a control plane with its store on disk is not there before it has it all.

    In a network namespace of the measurement's own: ``unshare -n``, with lo up and no default route.
    """
    need_nft()
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    if any(line.split()[1] == "00000000" for line in routes):
        pytest.skip("needs a network namespace without a default route: unshare -n, ip link set lo up")
    rule = f"tcp dport {port} reject with tcp reset"
    table = f"table inet gate {{ chain input {{ type filter hook input priority 0; {rule}; }}; }}"
    subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "gate"], check=True)


@contextlib.contextmanager
def running(rig: UpgradeRig, program: list[str]) -> Iterator[None]:
    """The program in front of the rig's application, as a systemd unit would run it."""
    rig.write_dataplane()
    own = ("--on-parent-death=kill", f"--work-dir={rig.work}", f"--state-dir={rig.state}") if program == KUMADP else ()
    command = [
        *(*program, "run", f"--cp-address={rig.plane.url}", f"--ca-cert-file={rig.ca}"),
        *(f"--dataplane-token-file={rig.token}", f"--dataplane-file={rig.file}", *own),
    ]
    environment = environment_of(rig.folder, rig.ports) | (DELTA if program != KUMADP else {})
    with (rig.folder / "log").open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def registered(rig: UpgradeRig, since: float) -> float:
    """Seconds until the control plane has a stream of the data plane; `WATCHED` if it has none in that time."""
    with contextlib.suppress(AssertionError):
        poll(rig.is_registered, what="the data plane registered", deadline=WATCHED)
    return time.monotonic() - since


def upgrade(rig: UpgradeRig, program: list[str], *, keep: bool) -> tuple[LoadReport, float]:
    """Replace the control plane under load; return what became of the requests, and seconds until registered."""
    with running(rig, program):
        poll(lambda: get(rig.ports.outbound)[0] == 200, what="traffic through the mesh", deadline=90)
        poll(rig.is_registered, what="the data plane registered", deadline=60)
        key = rig.kuma.get_secret(KEY)
        also = () if rig.mtls else (rig.ports.inbound,)
        with rig.pressure.on(rig.ports.outbound, rate=RATE, also=also) as report:
            with closed(DATA_PLANE_PORT) if keep else contextlib.nullcontext():
                rig.replace_plane(rig.versions.new)
                if keep:
                    rig.kuma.put(KEY, key)
            if not keep:
                rig.renew_token()
            since = time.monotonic()
            took = registered(rig, since)
            time.sleep(max(0.0, since + WATCHED - time.monotonic()))
    return report, took


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_what_an_upgrade_costs(table: list[tuple[str, str, str]], mtls: bool) -> None:
    runs = [("kumadp, new token", KUMADP, False), ("kumadp, token kept", KUMADP, True)]
    if peer := os.environ.get("KUMADP_BENCH_PEER"):
        runs.append((f"{Path(peer).name}, token kept", [peer], True))
    for name, program, keep in runs:
        answered, lost, seconds = [], [], []
        for _ in range(ROUNDS):
            with open_upgrade(mtls=mtls) as rig:
                report, took = upgrade(rig, program, keep=keep)
                assert get_json(f"/meshes/default/dataplanes/{NAME}") or program != KUMADP
            answered.append(float(report.answered))
            lost.append(float(sum(report.failures.values())))
            seconds.append(took)
        title = f"{name}{', mTLS' if mtls else ''}"
        note(table, f"{title}: answered", "", answered)
        note(table, f"{title}: lost", "", lost)
        note(table, f"{title}: registered", "s", seconds)
