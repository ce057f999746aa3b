"""Every mixture of sources in the formats of every scraper, read by promtool and by a real Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import urllib.parse
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.metrics.test_server import APP, ENVOY, OPEN_APP, at, own_metrics, policy
from tests.support.expositions import OPEN, TEXT, Exposition, check, collecting, exposed
from tests.support.needs import need_program
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ACCEPTS = {
    "none": "",
    "text": "text/plain;version=0.0.4",
    "any": "*/*",
    "open": "application/openmetrics-text;version=1.0.0",
    "prometheus 2.42": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "prometheus 3": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
}
SOURCES = {
    "text": Exposition(APP),
    "open": Exposition(OPEN_APP, OPEN),
    "nothing": Exposition(""),
    "no type": Exposition("untold 1\n", ""),
    "same names": Exposition(APP.replace("3", "4")),
}


@pytest.mark.parametrize("target", ["/", "/meshmetric"])
@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize(
    "chosen", [pair for n in (1, 2, 5) for pair in itertools.combinations(SOURCES, n)], ids="+".join
)
async def test_every_scraper_can_read_every_mixture(chosen: tuple[str, ...], accept: str, target: str) -> None:
    apps = [replace(SOURCES[name], seen=[]) for name in chosen]
    envoy = Exposition(ENVOY)
    own = own_metrics(b"kumadp_own 1\n")
    async with exposed(envoy, *apps), collecting(at(*apps, envoy=envoy, own=own)) as collector:
        collector.server.apply(policy(*apps))
        scrape = await collector.scrape(target, {"Accept": ACCEPTS[accept]} if accept != "none" else None)
    is_openmetrics = "open" in chosen and target == "/" and accept not in {"text", "any"}
    assert scrape.headers["content-type"] == (OPEN if is_openmetrics else TEXT)
    assert scrape.text.endswith("# EOF\n") is is_openmetrics
    assert scrape.text.count("# EOF") == int(is_openmetrics)
    assert "\n\n" not in scrape.text
    assert [line for line in scrape.text.splitlines() if scrape.text.count(line + "\n") > 1 and "TYPE" in line] == []
    assert 'jobs_total{kind="a # b"' in scrape.text or "open" not in chosen
    if is_openmetrics:
        # promtool reads only the text format: OpenMetrics is tested with Prometheus.
        assert ' 3 # {trace_id="x"} 1.0 1700000000\n' in scrape.text
    else:
        assert "trace_id" not in scrape.text
        assert not check(scrape.text)


@contextlib.asynccontextmanager
async def over_tcp(path: Path) -> AsyncIterator[int]:
    """A TCP port that forwards to the socket, as Envoy's listener does."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_unix_connection(str(path))
        with contextlib.suppress(OSError):
            await asyncio.gather(carry(reader, upstream[1]), carry(upstream[0], writer))

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def run_query(port: int, query: str) -> list[dict[str, Any]]:
    """Return the result of a query; empty while Prometheus starts."""
    try:
        url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result
    except OSError:
        return []


def errors(port: int) -> list[str]:
    """Return the errors of targets that are not scraped."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets", timeout=5) as answer:
        return [
            f"{target['scrapeUrl']}: {target['lastError']}"
            for target in json.load(answer)["data"]["activeTargets"]
            if target["lastError"]
        ]


@pytest.mark.process
async def test_a_real_prometheus_reads_every_mixture(tmp_path: Path) -> None:
    program, port = need_program("prometheus", "prometheus"), free_port()
    chosen = [pair for n in (1, 2, 5) for pair in itertools.combinations(SOURCES, n)]
    async with contextlib.AsyncExitStack() as stack:
        targets = []
        for names in chosen:
            apps, envoy = [replace(SOURCES[name], seen=[]) for name in names], Exposition(ENVOY)
            await stack.enter_async_context(exposed(envoy, *apps))
            collector = await stack.enter_async_context(collecting(at(*apps, envoy=envoy)))
            collector.server.apply(policy(*apps))
            targets.append(f"127.0.0.1:{await stack.enter_async_context(over_tcp(collector.path))}")
        jobs = [
            {"job_name": name, "metrics_path": path, "static_configs": [{"targets": targets}]}
            for name, path in (("legacy", "/"), ("policy", "/meshmetric"))
        ]
        config = tmp_path / "prometheus.json"
        # JSON is YAML.
        config.write_text(
            json.dumps({"global": {"scrape_interval": "4s", "scrape_timeout": "4s"}, "scrape_configs": jobs})
        )
        argv = [
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (tmp_path / "log").open("wb") as out:
            process = await asyncio.create_subprocess_exec(program, *argv, stdout=out, stderr=out, cwd=tmp_path)
        try:
            try:
                async with asyncio.timeout(60):
                    while len(await asyncio.to_thread(run_query, port, "up == 1")) < 2 * len(chosen):
                        await asyncio.sleep(0.2)
            except TimeoutError:
                pytest.fail(f"not scraped: {await asyncio.to_thread(errors, port)}")
            counted = await asyncio.to_thread(run_query, port, 'count by (job) (app_requests_total{code="200"})')
            opened = await asyncio.to_thread(run_query, port, 'jobs_total{kind="a # b"}')
            summed = await asyncio.to_thread(run_query, port, 'envoy_cluster_upstream_rq{kuma_io_mesh_traffic="true"}')
        finally:
            process.terminate()
            await process.wait()
    with_app = sum("text" in names or "same names" in names for names in chosen)
    with_both = sum("text" in names and "same names" in names for names in chosen)
    assert {series["metric"]["job"]: int(series["value"][1]) for series in counted} == {
        "legacy": with_app,
        "policy": with_app + with_both,
    }
    assert len(opened) == 2 * sum("open" in names for names in chosen)
    assert {series["value"][1] for series in summed} == {"3"}
    assert len(summed) == len(chosen)
