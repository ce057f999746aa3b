"""DNS metrics of the embedded resolver of a running kumadp, with the labels of its control plane."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from kumadp.host.net.socket_paths import control_socket_path
from tests.support.dynconf import SOCKET, dynconf_listener, with_etags
from tests.support.expositions import Scraped
from tests.support.poll import poll
from tests.support.prometheus import lint
from tests.support.rig import NAME, NODE, SOON, open_rig
from tests.support.unix_http import UnixConnection
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import LISTENER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.process

NAMES = (
    '{"records":[{"name":"backend.mesh","ips":["240.0.0.1"]},{"name":"web.mesh","ips":["240.0.0.2"]}],"ttl":30,'
    '"extraLabels":{"mesh":"default","kuma_io_zone":"east"}}'
)
OTHERS = NAMES.replace("east", "west").replace(',{"name":"web.mesh","ips":["240.0.0.2"]}', "")
LABELS = 'kuma_io_zone="east",mesh="default"'
EMBEDDED = {
    "KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION_REFRESH_INTERVAL": "100ms",
    "KUMA_DNS_ENABLED": "true",
    "KUMA_DNS_MODE": "embedded",
}


def scrape(daemon: Daemon) -> Scraped:
    connection = UnixConnection(control_socket_path(NAME, daemon.environment), 10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return Scraped(answer.status, dict(answer.getheaders()), answer.read().decode())


def query(port: int, name: str, kind: str = "A") -> str:
    with contextlib.suppress(OSError, EOFError, dns.exception.DNSException):
        response = dns.query.udp(dns.message.make_query(name, kind), "127.0.0.1", timeout=3, port=port)
        return dns.rcode.to_text(response.rcode())
    return ""


def test_queries_are_counted(tmp_path: Path) -> None:
    with XdsControlPlane() as plane, open_rig(tmp_path, plane) as rig, rig.run(environment=EMBEDDED) as daemon:
        rig.wait_traffic()
        bucket = "kuma_dp_dns_config_ready_wait_seconds_count"

        def serve(body: str) -> None:
            listener = dynconf_listener(rig.work / SOCKET, with_etags({"/dns": body}))
            plane.mesh(NODE).put(LISTENER, {name: value for name, value in listener.items() if name != "@type"})

        assert scrape(daemon).value(bucket) == 0
        serve(NAMES)
        poll(lambda: query(daemon.ports.dns, "backend.mesh") == "NOERROR", what="the name", deadline=SOON)
        scraped = scrape(daemon)
        first = f'kuma_dp_dns_queries_total{{{LABELS},qtype="A",source="local"}}'
        before = scraped.value(first)
        assert before
        assert scraped.value(f"kuma_dp_dns_entries_total{{{LABELS}}}") == 2
        assert scraped.value(f"{bucket}{{{LABELS}}}") == 1
        # A name of kuma-dp that is against the rules.
        problems = lint(scraped.text.encode()).splitlines()
        assert [line.partition(" ")[0] for line in problems] == ["kuma_dp_dns_entries_total", "exit"]
        for name, kind in (("BACKEND.mesh", "A"), ("web.mesh", "A"), ("web.mesh", "AAAA"), ("nobody.mesh", "A")):
            assert query(daemon.ports.dns, name, kind)
        scraped = scrape(daemon)
        assert scraped.value(first) == before + 3
        assert scraped.value(f'kuma_dp_dns_queries_total{{{LABELS},qtype="AAAA",source="local"}}') == 1
        assert (scraped.value(f'kuma_dp_dns_response_codes_total{{{LABELS},rcode="nxdomain"}}') or 0) >= 1
        took = "kuma_dp_dns_request_duration_seconds"
        assert (scraped.value(f"{took}_count{{{LABELS}}}") or 0) >= before + 4
        assert (scraped.value(f"{took}_sum{{{LABELS}}}") or 0) > 0
        # Labels stay those of the first names, as with kuma-dp: another set would be another series.
        serve(OTHERS)
        poll(lambda: scrape(daemon).value(f"kuma_dp_dns_entries_total{{{LABELS}}}") == 1, what="fewer names")
