"""Sources of metrics, well and unwell, and scrapes of the socket that collects them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import ClientSession, UnixConnector, web

from kumadp.metrics.server import MetricsServer
from tests.support.needs import need_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kumadp.metrics.server import SourceLocator

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@functools.cache
def bomb() -> bytes:
    """32 MB of samples in some KB."""
    return gzip.compress(b"a 1\n" * (8 << 20), 1)


@dataclass
class Exposition:
    """What a source answers: ``how`` is well, hang (no head), stall (half a body), reset, bomb (gzip) or endless."""

    body: str = ""
    content_type: str = TEXT
    status: int = 200
    how: str = "well"
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[web.BaseRequest] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        if self.how == "bomb":
            # Before anybody waits for it.
            bomb()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(request)
        if self.how == "hang":
            await asyncio.Event().wait()
        body, headers = self.body.encode(), {"content-type": self.content_type, **self.headers}
        if self.how == "gzip":
            headers["content-encoding"] = "gzip"
            half = len(body) // 2
            body = gzip.compress(body[:half]) + gzip.compress(body[half:])
        if self.how == "bomb":
            headers["content-encoding"] = "gzip"
            body = bomb()
        response = web.StreamResponse(status=self.status, headers=headers)
        await response.prepare(request)
        if self.how in {"stall", "reset"}:
            await response.write(body[: len(body) // 2])
            if self.how == "stall":
                await asyncio.Event().wait()
            assert request.transport is not None
            request.transport.abort()
            return response
        while self.how == "endless":
            await response.write(body * 1000)
        await response.write(body)
        await response.write_eof()
        return response


@contextlib.asynccontextmanager
async def exposed(*sources: Exposition) -> AsyncIterator[None]:
    """They answer, each on its own port."""
    async with contextlib.AsyncExitStack() as stack:
        for source in sources:
            runner = web.ServerRunner(web.Server(source.answer, handler_cancellation=True), shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            source.port = int(runner.addresses[0][1])
        yield


@dataclass(frozen=True)
class Scraped:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    def value(self, series: str) -> float | None:
        """Of one series, None where it is not there."""
        match = re.search(rf"^{re.escape(series)}(?:\{{\}})? (\S+)", self.text, re.MULTILINE)
        return float(match[1]) if match else None

    def up(self, source: str) -> bool:
        """Whether a source answered."""
        return self.value(f'kumadp_scrape_source_up{{source="{source}"}}') == 1


class MetricsCollector:
    """A running `MetricsServer`."""

    def __init__(self, path: Path, server: MetricsServer, concerns: dict[str, str]) -> None:
        self.path, self.server, self.concerns = path, server, concerns

    async def scrape(
        self, target: str = "/", headers: Mapping[str, str] | None = None, method: str = "GET", timeout: float = 30.0
    ) -> Scraped:
        """Send a request as Envoy's Prometheus listener does."""
        async with (
            asyncio.timeout(timeout),
            ClientSession(
                connector=UnixConnector(str(self.path)), skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent")
            ) as session,
            session.request(method, f"http://localhost{target}", headers=headers) as answer,
        ):
            return Scraped(answer.status, answer.headers, await answer.text())


@contextlib.asynccontextmanager
async def collecting(around: SourceLocator) -> AsyncIterator[MetricsCollector]:
    """Serve with these sources."""
    folder = Path(tempfile.mkdtemp(prefix="km"))
    concerns: dict[str, str] = {}
    server = MetricsServer(folder / "s", around, set_warning=concerns.__setitem__)
    up = asyncio.Event()
    running = asyncio.create_task(server.run(up.set))
    try:
        await up.wait()
        yield MetricsCollector(folder / "s", server, concerns)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        shutil.rmtree(folder)


def check(text: str) -> str:
    """What ``promtool check metrics`` finds that is no mere matter of style; empty where it can read everything."""
    promtool = need_program("promtool", "prometheus")
    done = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, timeout=60)
    # 3: it can be read, and is not as one would name it.
    return "" if done.returncode in {0, 3} else (done.stderr or done.stdout).decode()
