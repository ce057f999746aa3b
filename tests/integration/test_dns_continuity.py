"""Names under load while kumadp is re-executed, and while resolv.conf changes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.host.net.socket_paths import control_socket_path
from tests.integration.test_dns import query, running
from tests.support.dns_load import dns_load
from tests.support.needs import need_coredns
from tests.support.poll import poll

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon, Ports

pytestmark = pytest.mark.process

TIMES = 3
FALLBACK = "the embedded resolver"


def reexecuted(daemon: Daemon, times: int) -> bool:
    try:
        status = query_status(control_socket_path("web", daemon.environment))
    except OSError:
        return False
    return bool(status["phase"] == "READY" and status.get("reexec", {}).get("count") == times)


def uses_fallback(daemon: Daemon) -> bool:
    try:
        status = query_status(control_socket_path("web", daemon.environment))
    except OSError:
        # On a busy host the control socket's first response may take longer than the client waits.
        return False
    return bool(status["dns"]["answered_by"] == FALLBACK)


def under_load(daemon: Daemon, ports: Ports) -> None:
    """Re-execute some times; nothing is lost after one retry, as clients of the C library try, nor answered wrongly."""
    with dns_load(ports.dns, "backend.mesh", rate=500, seconds=10, wait=5.0) as load:
        for count in range(TIMES):
            daemon.process.send_signal(signal.SIGUSR1)
            poll(lambda: reexecuted(daemon, count + 1), what="the next program", deadline=30)  # noqa: B023
        counts = load.counts()
    assert (counts.sent, counts.answered, counts.lost, counts.wrong) == (5000, 5000, 0, 0)
    assert "is not served any more" not in daemon.output()
    for tcp in (False, True):
        assert query(ports.dns, "backend.mesh", tcp=tcp) == ("NOERROR", ["127.0.0.1"])


def test_the_embedded_resolver_survives_a_reexecution(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, "--dns-mode=embedded", coredns="coredns") as daemon:
        daemon.wait_ready()
        under_load(daemon, ports)


def test_the_fallback_survives_a_reexecution(tmp_path: Path, ports: Ports) -> None:
    coredns = str(need_coredns())
    with running(tmp_path, ports, "--coredns-restart-budget=0", coredns=coredns) as daemon:
        daemon.wait_ready()
        daemon.children()["coredns"].kill()
        poll(lambda: uses_fallback(daemon), what="the fallback")
        under_load(daemon, ports)
        assert "coredns" not in daemon.children()
        status = query_status(control_socket_path("web", daemon.environment))
        assert (status["children"]["coredns"]["state"], status["dns"]["answered_by"]) == ("FATAL", FALLBACK)
