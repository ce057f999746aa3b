"""The metrics socket in front of real sources, healthy and failing, with and without a policy."""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from kumadp.host.net.ports import BindAddress
from kumadp.metrics.formats import Format
from kumadp.metrics.profiles import Selection, SelectionSpec
from kumadp.metrics.server import ScrapedApplication, ScrapePolicy, SourceLocator, legacy_query, source_seconds
from tests.support.expositions import OPEN, TEXT, Exposition, check, collecting, exposed
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ENVOY = """# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_cluster_name="b-0011223344556677"} 1
envoy_cluster_upstream_rq{envoy_cluster_name="b-1111223344556677"} 2
envoy_cluster_upstream_rq{envoy_cluster_name="ads_cluster"} 5
# TYPE envoy_cluster_version gauge
envoy_cluster_version{envoy_cluster_name="b"} 1
# TYPE envoy_server_live gauge
envoy_server_live 1
"""
APP = """# HELP app_requests_total Requests.
# TYPE app_requests_total counter
app_requests_total{code="200"} 3
# TYPE app_temperature gauge
app_temperature 21.5
"""
OPEN_APP = """# HELP jobs Jobs.
# TYPE jobs counter
# UNIT jobs furlongs
jobs_total{kind="a # b"} 3 # {trace_id="x"} 1.0 1700000000
jobs_created{kind="a # b"} 1700000000.0
# TYPE state stateset
state{state="on"} 1
# TYPE build info
build_info{version="1"} 1
# TYPE odd unknown
odd 1
# EOF
"""
MESH = ',kuma_io_mesh_traffic="true"'


def at(*apps: Exposition, envoy: Exposition | None = None, **fields: object) -> SourceLocator:
    applications = tuple(ScrapedApplication(f"app{n}", "127.0.0.1", app.port, "/metrics") for n, app in enumerate(apps))
    admin = ("127.0.0.1", envoy.port) if envoy is not None else ("127.0.0.1", free_port())
    return replace(SourceLocator(lambda: applications, lambda: admin), **fields)


def own_metrics(text: bytes) -> Callable[[], Awaitable[tuple[bytes, str]]]:
    async def own() -> tuple[bytes, str]:
        return text, TEXT

    return own


def policy(*apps: Exposition, spec: SelectionSpec = SelectionSpec(), **fields: object) -> ScrapePolicy:  # noqa: B008
    applications = tuple(ScrapedApplication(f"app{n}", "127.0.0.1", app.port, "/metrics") for n, app in enumerate(apps))
    return replace(ScrapePolicy(applications, Selection(spec), {"mesh": "m"}), **fields)


async def test_a_scrape_without_a_policy() -> None:
    envoy, app = Exposition(ENVOY), Exposition(APP)
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        scrape = await collector.scrape("/?filter=a%2Fb&usedonly", {"Accept": "text/plain", "X-Other": "1"})
    assert (scrape.status, scrape.headers["content-type"]) == (200, TEXT)
    assert scrape.value(f'envoy_cluster_upstream_rq{{envoy_cluster_name="b"{MESH}}}') == 3
    assert scrape.value('envoy_cluster_upstream_rq{envoy_cluster_name="ads_cluster"}') == 5
    assert scrape.value("envoy_server_live") == 1
    assert scrape.value('app_requests_total{code="200"}') == 3
    assert scrape.up("envoy")
    assert scrape.up("app0")
    assert not check(scrape.text)
    (request,) = envoy.seen
    assert str(request.rel_url.raw_path_qs) == "/stats?filter=a%2Fb&format=prometheus&text_readouts=&usedonly="
    (request,) = app.seen
    assert str(request.rel_url.raw_path_qs) == "/metrics"
    assert request.headers["Accept"] == "text/plain"
    assert not {"X-Other", "User-Agent"} & set(request.headers)


async def test_only_headers_of_prometheus_are_forwarded() -> None:
    app = Exposition(APP)
    sent = {"Accept": TEXT, "User-Agent": "Prometheus/2", "X-Prometheus-Scrape-Timeout-Seconds": "5"}
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape("/", {**sent, "Authorization": "Bearer x", "Cookie": "a=b"})
    scrape = dict(app.seen[0].headers)
    assert {name: scrape[name] for name in sent} == sent
    assert set(scrape) <= {*sent, "Host", "Accept-Encoding", "Connection"}


@pytest.mark.parametrize("sourced", [True, False])
async def test_applications_are_read_past_transparent_proxying(sourced: bool) -> None:
    app = Exposition(APP)
    async with exposed(app), collecting(at(app, sourced=sourced)) as collector:
        await collector.scrape()
    assert app.seen[0].remote == ("127.0.0.6" if sourced else "127.0.0.1")


async def test_a_scrape_by_policy() -> None:
    envoy, app = Exposition(ENVOY), Exposition(APP)
    async with exposed(envoy, app), collecting(at(envoy=envoy)) as collector:
        collector.server.apply(policy(app))
        scrape = await collector.scrape("/meshmetric")
        collector.server.apply(policy(app, spec=SelectionSpec(("All",)), used_only=False, labels={}))
        all_profiles = await collector.scrape("/meshmetric")
        collector.server.apply(None)
        without = await collector.scrape("/meshmetric")
    assert scrape.headers["content-type"] == TEXT
    assert scrape.value('envoy_cluster_upstream_rq{envoy_cluster_name="b-0011223344556677",mesh="m"}') == 1
    assert scrape.value('envoy_server_live{mesh="m"}') == 1
    assert scrape.value('app_temperature{mesh="m",otel_scope_name="app0"}') == 21.5
    assert scrape.value('kumadp_scrape_source_up{source="app0",mesh="m"}') == 1
    assert "ads_cluster" not in scrape.text
    assert "envoy_cluster_version" not in scrape.text
    assert all_profiles.value('envoy_cluster_version{envoy_cluster_name="b"}') == 1
    assert all_profiles.value('envoy_cluster_upstream_rq{envoy_cluster_name="ads_cluster"}') == 5
    assert "app_temperature" not in without.text
    assert without.value("envoy_server_live") == 1
    assert [request.rel_url.raw_query_string for request in envoy.seen] == [
        "format=prometheus&text_readouts=&usedonly=",
        "format=prometheus&text_readouts=",
        "format=prometheus&text_readouts=&usedonly=",
    ]
    assert not check(scrape.text)
    assert not check(all_profiles.text)


FAILING = {
    "hangs": Exposition(APP, how="hang"),
    "stalls": Exposition(APP * 1000, how="stall"),
    "breaks off": Exposition(APP * 1000, how="reset"),
    "is endless": Exposition("a 1\n", how="endless"),
    "is a gzip bomb": Exposition(how="bomb"),
    "returns an error page": Exposition("<h1>app_requests_total 1</h1>", "text/html", 500),
    "returns an error in the format": Exposition("wrong 1\n", status=503),
    "returns 200 with a page": Exposition("<html>\n<body>\nno\n</html>\n", "text/html"),
    "declares text and returns JSON": Exposition('{"status": "ok"}\n'),
    "returns protobuf": Exposition("\x01", "application/vnd.google.protobuf; encoding=delimited"),
    "declares gzip and is not compressed": Exposition(APP, headers={"content-encoding": "gzip"}),
    "declares br": Exposition(APP, headers={"content-encoding": "br"}),
    "redirects to another host": Exposition(status=302, headers={"location": "http://203.0.113.1/"}),
    "redirects in circles": Exposition(status=302, headers={"location": "/metrics"}),
    "has an endless line": Exposition("a" * (2 << 20)),
}


@pytest.mark.parametrize("target", ["/", "/meshmetric"])
@pytest.mark.parametrize("failure", FAILING)
async def test_a_failing_source_loses_its_own_part_only(failure: str, target: str) -> None:
    bad, envoy, app = dataclasses.replace(FAILING[failure], seen=[]), Exposition(ENVOY), Exposition(APP)
    async with exposed(envoy, app, bad), collecting(at(bad, app, envoy=envoy, limit=4 << 20)) as collector:
        scrape = await collector.scrape(target, {"X-Prometheus-Scrape-Timeout-Seconds": "3"})
        warning = collector.concerns["app0"]
        sources = collector.server.status()["sources"]
    assert scrape.status == 200
    assert warning
    text = scrape.text.replace(',otel_scope_name="app1"', "").replace('{otel_scope_name="app1"}', "")
    assert 'app_requests_total{code="200"' in text
    assert scrape.text.count("app_temperature") == 2
    assert "wrong" not in scrape.text
    assert (scrape.up("app0"), scrape.up("app1"), scrape.up("envoy")) == (False, True, True)
    assert scrape.value("envoy_server_live") == 1
    assert isinstance(sources, dict)
    assert sources["app0"]["why"] == warning
    assert not check(scrape.text)


@pytest.mark.parametrize("how", ["hang", "stall", "reset"])
async def test_a_failing_envoy_loses_its_own_part_only(how: str) -> None:
    envoy, app = Exposition(ENVOY * 3000, how=how), Exposition(APP)
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        for target in ("/", "/meshmetric"):
            scrape = await collector.scrape(target, {"X-Prometheus-Scrape-Timeout-Seconds": "3"})
            assert (scrape.up("envoy"), scrape.up("app0")) == (False, True)
            assert not check(scrape.text)


async def test_without_an_envoy() -> None:
    app = Exposition(APP)
    async with exposed(app), collecting(at(app)) as collector:
        scrape = await collector.scrape()
        assert (scrape.status, scrape.up("envoy"), scrape.up("app0")) == (200, False, True)
        assert "refused" in collector.concerns["envoy"]


async def test_an_unexpected_error_affects_one_source_only(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, app = Exposition(APP, content_type="text/bad"), Exposition(APP)

    def form(text: str) -> Format:
        if text == "text/bad":
            raise LookupError("unforeseen")
        return Format.TEXT

    monkeypatch.setattr("kumadp.metrics.sources.format_of", form)
    async with exposed(bad, app), collecting(at(bad, app)) as collector:
        scrape = await collector.scrape()
        assert "unforeseen" in collector.concerns["app0"]
    assert scrape.up("app1")


async def test_the_warning_of_a_source_that_recovers_is_cleared() -> None:
    app = Exposition(APP, status=500)
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape()
        assert collector.concerns["app0"] == "it responded with status 500"
        app.status = 200
        await collector.scrape()
        assert collector.concerns["app0"] == ""


async def test_only_an_invalid_family_is_dropped() -> None:
    app = Exposition(APP + "# TYPE odd gauge\nodd one\nfine 1\n")
    async with exposed(app), collecting(at(app)) as collector:
        scrape = await collector.scrape()
    assert scrape.value("fine") == 1
    assert "odd" not in scrape.text
    assert scrape.value('kumadp_scrape_source_skipped_families{source="app0"}') == 1
    assert scrape.up("app0")


async def test_responses_are_decompressed_and_compressed_on_request() -> None:
    envoy, app = Exposition(ENVOY), Exposition(APP * 1, how="gzip")
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        plain = await collector.scrape()
        packed = await collector.scrape("/", {"Accept-Encoding": "gzip, deflate"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    for scrape in (plain, packed):
        assert scrape.value("app_temperature") == 21.5
        assert scrape.value("envoy_server_live") == 1


async def test_compression_is_requested_from_applications() -> None:
    app = Exposition(APP)
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape()
    assert app.seen[0].headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS"])
async def test_any_method(method: str) -> None:
    envoy = Exposition(ENVOY)
    async with exposed(envoy), collecting(at(envoy=envoy)) as collector:
        scrape = await collector.scrape("/", method=method)
    assert scrape.status == 200
    assert bool(scrape.text) is (method != "HEAD")
    assert envoy.seen[0].method == "GET"


async def test_a_redirect_on_the_same_host_is_followed() -> None:
    class Moved(Exposition):
        async def answer(self, request):  # type: ignore[no-untyped-def]
            self.status = 200 if request.path == "/metrics/" else 307
            self.headers = {} if self.status == 200 else {"location": "/metrics/"}
            return await super().answer(request)

    app = Moved(APP)
    async with exposed(app), collecting(at(app)) as collector:
        scrape = await collector.scrape()
    assert scrape.value("app_temperature") == 21.5


async def test_a_warning_shows_the_target_of_a_redirect() -> None:
    class Moved(Exposition):
        async def answer(self, request):  # type: ignore[no-untyped-def]
            self.status = 404 if request.path == "/elsewhere" else 307
            self.headers = {"location": "/elsewhere?x=1"} if self.status == 307 else {}
            return await super().answer(request)

    app = Moved(APP)
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape()
        assert collector.concerns["app0"] == "it responded with status 404 at /elsewhere?x=1, to which it redirects"


async def test_timestamps_have_the_unit_of_the_format() -> None:
    timed = OPEN_APP.replace(" 3 # ", " 3 1700000000.5 # ")
    apps = [Exposition("timed 1 1700000000500\nuntimed 2\n"), Exposition(timed, OPEN)]
    async with exposed(*apps), collecting(at(*apps)) as collector:
        opened = await collector.scrape("/", {"Accept": OPEN})
        text = await collector.scrape("/", {"Accept": TEXT})
    assert "timed 1 1700000000.500\n" in opened.text
    assert ' 3 1700000000.5 # {trace_id="x"} 1.0 1700000000\n' in opened.text
    assert "timed 1 1700000000500\n" in text.text
    assert 'jobs_total{kind="a # b"} 3 1700000000500\n' in text.text
    assert "# TYPE jobs_total counter\n" in text.text
    assert "# TYPE build_info gauge\n" in text.text


async def test_families_of_the_same_name_and_kind_are_grouped() -> None:
    apps = [
        Exposition('# TYPE a counter\na{x="1"} 1\n# TYPE b gauge\nb 1\n'),
        Exposition('# TYPE b gauge\nb{x="2"} 2\n# TYPE a histogram\na_bucket{le="+Inf"} 2\n'),
    ]
    async with exposed(*apps), collecting(at(*apps)) as collector:
        scrape = await collector.scrape()
    assert scrape.text.startswith('# TYPE a counter\na{x="1"} 1\n# TYPE b gauge\nb 1\nb{x="2"} 2\n')
    assert scrape.value('kumadp_scrape_source_skipped_families{source="app1"}') == 1


async def test_only_own_families_of_kumadp_and_coredns_are_exposed() -> None:
    coredns = Exposition("# TYPE coredns_x counter\ncoredns_x 1\n# TYPE go_goroutines gauge\ngo_goroutines 5\n")
    own = b"# TYPE kumadp_x gauge\nkumadp_x 1\n# TYPE process_cpu gauge\nprocess_cpu 1\n"
    async with (
        exposed(coredns),
        collecting(
            at(own=own_metrics(own), coredns=lambda: BindAddress("127.0.0.1", coredns.port, "tcp", "", ""))
        ) as collector,
    ):
        scrape = await collector.scrape()
    assert (scrape.value("coredns_x"), scrape.value("kumadp_x"), scrape.up("coredns")) == (1, 1, True)
    assert "go_goroutines" not in scrape.text
    assert "process_cpu" not in scrape.text


async def test_a_failure_of_the_own_metrics_does_not_affect_the_others() -> None:
    async def own() -> tuple[bytes, str]:
        raise RuntimeError("no")

    app = Exposition(APP)
    async with exposed(app), collecting(at(app, own=own)) as collector:
        scrape = await collector.scrape()
        assert "RuntimeError" in collector.concerns["kumadp"]
    assert scrape.up("app0")


async def test_a_scraper_may_disconnect() -> None:
    app = Exposition(APP, how="hang")
    async with exposed(app), collecting(at(app)) as collector:
        with pytest.raises(TimeoutError):
            await collector.scrape(timeout=0.5)
        app.how = "well"
        assert (await collector.scrape()).up("app0")


async def test_applications_of_the_same_name_are_distinct_sources() -> None:
    apps = [Exposition(APP), Exposition(APP, status=500)]
    async with exposed(*apps):
        applications = tuple(ScrapedApplication("same", "127.0.0.1", app.port, "metrics?x") for app in apps)
        async with collecting(SourceLocator(lambda: applications)) as collector:
            scrape = await collector.scrape()
    assert scrape.up("same")
    assert scrape.value(f'kumadp_scrape_source_up{{source="127.0.0.1:{apps[1].port}/metrics?x"}}') == 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 10), ("10", 9), ("0.5", 0.45), ("60", 59), ("x", 10), ("0", 10), ("inf", 10), ("-1", 10)],
)
def test_deadlines_of_sources(header: str, seconds: float) -> None:
    assert source_seconds(header) == pytest.approx(seconds)


def test_the_query_is_encoded_as_go_encodes_it() -> None:
    assert legacy_query("") == "format=prometheus&text_readouts="
    assert legacy_query("usedonly&filter=a+b%7Cc&filter=%ff") == (
        "filter=a+b%7Cc&filter=%FF&format=prometheus&text_readouts=&usedonly="
    )


async def test_concurrent_scrapes() -> None:
    envoy, app = Exposition(ENVOY * 200), Exposition(APP)
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        scrape = await asyncio.gather(*(collector.scrape() for _ in range(8)))
    assert len({zlib.crc32(result.text.partition("# HELP kumadp_")[0].encode()) for result in scrape}) == 1


async def test_the_path_of_an_application_is_requested_as_written() -> None:
    app = Exposition(APP)
    async with exposed(app):
        paths = ("/metrics?format=x&a=%20b c#d", "metrics", "/a b/%2F")
        locator = SourceLocator(lambda: tuple(ScrapedApplication("", "127.0.0.1", app.port, path) for path in paths))
        async with collecting(locator) as collector:
            scrape = await collector.scrape()
    request = sorted(str(request.rel_url.raw_path_qs) for request in app.seen)
    assert request == ["/a%20b/%2F", "/metrics", "/metrics?format=x&a=%20b%20c%23d"]
    assert scrape.up(f"127.0.0.1:{app.port}/metrics?format=x&a=%20b c#d")


async def test_a_warning_names_the_requested_path() -> None:
    app = Exposition(APP, status=404)
    async with exposed(app):
        application = ScrapedApplication("", "127.0.0.1", app.port, "/metrics?format=x")
        async with collecting(SourceLocator(lambda: (application,))) as collector:
            await collector.scrape()
            assert collector.concerns[f"127.0.0.1:{app.port}/metrics?format=x"] == "it responded with status 404"


async def test_a_timestamp_out_of_range_affects_its_sample_only() -> None:
    app = Exposition(f"# TYPE a gauge\na 1 {'9' * 400}\n")
    opened = Exposition(OPEN_APP, OPEN)
    async with exposed(app, opened), collecting(at(app, opened)) as collector:
        scrape = await collector.scrape()
    assert scrape.value("a") == 1
    assert scrape.text.endswith("# EOF\n")
