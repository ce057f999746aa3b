"""The socket of metrics in front of real sources, well and unwell, in both modes."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kumadp.host.net.ports import BindAddress
from kumadp.metrics.formats import Format
from kumadp.metrics.profiles import Selection, Wanted
from kumadp.metrics.server import Application, Policy, Surroundings, allowed, legacy_query
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


def at(*apps: Exposition, envoy: Exposition | None = None, **more: object) -> Surroundings:
    applications = tuple(Application(f"app{n}", "127.0.0.1", app.port, "/metrics") for n, app in enumerate(apps))
    admin = ("127.0.0.1", envoy.port) if envoy is not None else ("127.0.0.1", free_port())
    return replace(Surroundings(lambda: applications, lambda: admin), **more)  # type: ignore[arg-type]  # by their names


def telling(text: bytes) -> Callable[[], Awaitable[tuple[bytes, str]]]:
    async def own() -> tuple[bytes, str]:
        return text, TEXT

    return own


def policy(*apps: Exposition, wanted: Wanted = Wanted(), **more: object) -> Policy:  # noqa: B008
    applications = tuple(Application(f"app{n}", "127.0.0.1", app.port, "/metrics") for n, app in enumerate(apps))
    return replace(Policy(applications, Selection(wanted), {"mesh": "m"}), **more)  # type: ignore[arg-type]


async def test_the_way_from_before_policies() -> None:
    envoy, app = Exposition(ENVOY), Exposition(APP)
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        got = await collector.scrape("/?filter=a%2Fb&usedonly", {"Accept": "text/plain", "X-Other": "1"})
    assert (got.status, got.headers["content-type"]) == (200, TEXT)
    assert got.value(f'envoy_cluster_upstream_rq{{envoy_cluster_name="b"{MESH}}}') == 3
    assert got.value('envoy_cluster_upstream_rq{envoy_cluster_name="ads_cluster"}') == 5
    assert got.value("envoy_server_live") == 1
    assert got.value('app_requests_total{code="200"}') == 3
    assert got.up("envoy")
    assert got.up("app0")
    assert not check(got.text)
    (asked,) = envoy.seen
    assert str(asked.rel_url.raw_path_qs) == "/stats?filter=a%2Fb&format=prometheus&text_readouts=&usedonly="
    (asked,) = app.seen
    assert str(asked.rel_url.raw_path_qs) == "/metrics"
    assert asked.headers["Accept"] == "text/plain"
    assert not {"X-Other", "User-Agent"} & set(asked.headers)


async def test_only_what_prometheus_says_goes_on() -> None:
    app = Exposition(APP)
    sent = {"Accept": TEXT, "User-Agent": "Prometheus/2", "X-Prometheus-Scrape-Timeout-Seconds": "5"}
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape("/", {**sent, "Authorization": "Bearer x", "Cookie": "a=b"})
    got = dict(app.seen[0].headers)
    assert {name: got[name] for name in sent} == sent
    assert set(got) <= {*sent, "Host", "Accept-Encoding", "Connection"}


@pytest.mark.parametrize("sourced", [True, False])
async def test_applications_are_asked_past_transparent_proxying(sourced: bool) -> None:
    app = Exposition(APP)
    async with exposed(app), collecting(at(app, sourced=sourced)) as collector:
        await collector.scrape()
    assert app.seen[0].remote == ("127.0.0.6" if sourced else "127.0.0.1")


async def test_by_policy() -> None:
    envoy, app = Exposition(ENVOY), Exposition(APP)
    async with exposed(envoy, app), collecting(at(envoy=envoy)) as collector:
        collector.server.apply(policy(app))
        got = await collector.scrape("/meshmetric")
        collector.server.apply(policy(app, wanted=Wanted(("All",)), used_only=False, labels={}))
        every = await collector.scrape("/meshmetric")
        collector.server.apply(None)
        without = await collector.scrape("/meshmetric")
    assert got.headers["content-type"] == TEXT
    assert got.value('envoy_cluster_upstream_rq{envoy_cluster_name="b-0011223344556677",mesh="m"}') == 1
    assert got.value('envoy_server_live{mesh="m"}') == 1
    assert got.value('app_temperature{mesh="m",otel_scope_name="app0"}') == 21.5
    assert got.value('kumadp_scrape_source_up{source="app0",mesh="m"}') == 1
    assert "ads_cluster" not in got.text
    assert "envoy_cluster_version" not in got.text
    assert every.value('envoy_cluster_version{envoy_cluster_name="b"}') == 1
    assert every.value('envoy_cluster_upstream_rq{envoy_cluster_name="ads_cluster"}') == 5
    assert "app_temperature" not in without.text
    assert without.value("envoy_server_live") == 1
    assert [asked.rel_url.raw_query_string for asked in envoy.seen] == [
        "format=prometheus&text_readouts=&usedonly=",
        "format=prometheus&text_readouts=",
        "format=prometheus&text_readouts=&usedonly=",
    ]
    assert not check(got.text)
    assert not check(every.text)


UNWELL = {
    "hangs": Exposition(APP, how="hang"),
    "stalls": Exposition(APP * 1000, how="stall"),
    "breaks off": Exposition(APP * 1000, how="reset"),
    "is endless": Exposition("a 1\n", how="endless"),
    "is a bomb": Exposition(how="bomb"),
    "errs": Exposition("<h1>app_requests_total 1</h1>", "text/html", 500),
    "errs in the format": Exposition("wrong 1\n", status=503),
    "says well and shows a page": Exposition("<html>\n<body>\nno\n</html>\n", "text/html"),
    "says text and is JSON": Exposition('{"status": "ok"}\n'),
    "speaks protobuf": Exposition("\x01", "application/vnd.google.protobuf; encoding=delimited"),
    "says gzip and is not": Exposition(APP, headers={"content-encoding": "gzip"}),
    "says br": Exposition(APP, headers={"content-encoding": "br"}),
    "leads elsewhere": Exposition(status=302, headers={"location": "http://203.0.113.1/"}),
    "leads in circles": Exposition(status=302, headers={"location": "/metrics"}),
    "has a line without an end": Exposition("a" * (2 << 20)),
}


@pytest.mark.parametrize("target", ["/", "/meshmetric"])
@pytest.mark.parametrize("what", UNWELL)
async def test_a_source_that_is_unwell_costs_its_own_part(what: str, target: str) -> None:
    bad, envoy, app = replace(UNWELL[what], seen=[]), Exposition(ENVOY), Exposition(APP)
    async with exposed(envoy, app, bad), collecting(at(bad, app, envoy=envoy, limit=4 << 20)) as collector:
        got = await collector.scrape(target, {"X-Prometheus-Scrape-Timeout-Seconds": "3"})
        concern = collector.concerns["app0"]
        shown = collector.server.status()["sources"]
    assert got.status == 200
    assert concern
    text = got.text.replace(',otel_scope_name="app1"', "").replace('{otel_scope_name="app1"}', "")
    assert 'app_requests_total{code="200"' in text
    assert got.text.count("app_temperature") == 2
    assert "wrong" not in got.text
    assert (got.up("app0"), got.up("app1"), got.up("envoy")) == (False, True, True)
    assert got.value("envoy_server_live") == 1
    assert isinstance(shown, dict)
    assert shown["app0"]["why"] == concern
    assert not check(got.text)


@pytest.mark.parametrize("how", ["hang", "stall", "reset"])
async def test_an_envoy_that_is_unwell_costs_its_own_part(how: str) -> None:
    envoy, app = Exposition(ENVOY * 3000, how=how), Exposition(APP)
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        for target in ("/", "/meshmetric"):
            got = await collector.scrape(target, {"X-Prometheus-Scrape-Timeout-Seconds": "3"})
            assert (got.up("envoy"), got.up("app0")) == (False, True)
            assert not check(got.text)


async def test_without_an_envoy() -> None:
    app = Exposition(APP)
    async with exposed(app), collecting(at(app)) as collector:
        got = await collector.scrape()
        assert (got.status, got.up("envoy"), got.up("app0")) == (200, False, True)
        assert "refused" in collector.concerns["envoy"]


async def test_even_what_is_not_foreseen_costs_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, app = Exposition(APP, content_type="text/bad"), Exposition(APP)

    def form(text: str) -> Format:
        if text == "text/bad":
            raise LookupError("unforeseen")
        return Format.TEXT

    monkeypatch.setattr("kumadp.metrics.sources.format_of", form)
    async with exposed(bad, app), collecting(at(bad, app)) as collector:
        got = await collector.scrape()
        assert "unforeseen" in collector.concerns["app0"]
    assert got.up("app1")


async def test_a_source_that_recovers_is_well_again() -> None:
    app = Exposition(APP, status=500)
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape()
        assert collector.concerns["app0"] == "it answers with 500"
        app.status = 200
        await collector.scrape()
        assert collector.concerns["app0"] == ""


async def test_a_wrong_family_costs_itself_alone() -> None:
    app = Exposition(APP + "# TYPE odd gauge\nodd one\nfine 1\n")
    async with exposed(app), collecting(at(app)) as collector:
        got = await collector.scrape()
    assert got.value("fine") == 1
    assert "odd" not in got.text
    assert got.value('kumadp_scrape_source_skipped_families{source="app0"}') == 1
    assert got.up("app0")


async def test_a_packed_answer_is_unpacked_and_packed_where_it_is_asked_for() -> None:
    envoy, app = Exposition(ENVOY), Exposition(APP * 1, how="gzip")
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        plain = await collector.scrape()
        packed = await collector.scrape("/", {"Accept-Encoding": "gzip, deflate"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    for got in (plain, packed):
        assert got.value("app_temperature") == 21.5
        assert got.value("envoy_server_live") == 1


async def test_an_answer_is_asked_for_packed() -> None:
    app = Exposition(APP)
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape()
    assert app.seen[0].headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS"])
async def test_any_method(method: str) -> None:
    envoy = Exposition(ENVOY)
    async with exposed(envoy), collecting(at(envoy=envoy)) as collector:
        got = await collector.scrape("/", method=method)
    assert got.status == 200
    assert bool(got.text) is (method != "HEAD")
    assert envoy.seen[0].method == "GET"


async def test_a_redirect_on_the_same_host_is_followed() -> None:
    class Moved(Exposition):
        async def answer(self, request):  # type: ignore[no-untyped-def]
            self.status = 200 if request.path == "/metrics/" else 307
            self.headers = {} if self.status == 200 else {"location": "/metrics/"}
            return await super().answer(request)

    app = Moved(APP)
    async with exposed(app), collecting(at(app)) as collector:
        got = await collector.scrape()
    assert got.value("app_temperature") == 21.5


async def test_a_concern_shows_where_a_redirect_led() -> None:
    class Moved(Exposition):
        async def answer(self, request):  # type: ignore[no-untyped-def]
            self.status = 404 if request.path == "/elsewhere" else 307
            self.headers = {"location": "/elsewhere?x=1"} if self.status == 307 else {}
            return await super().answer(request)

    app = Moved(APP)
    async with exposed(app), collecting(at(app)) as collector:
        await collector.scrape()
        assert collector.concerns["app0"] == "it answers with 404 at /elsewhere?x=1, where it redirects to"


async def test_times_are_in_what_the_format_counts() -> None:
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


async def test_families_of_one_name_stand_together_and_other_kinds_do_not_mix() -> None:
    apps = [
        Exposition('# TYPE a counter\na{x="1"} 1\n# TYPE b gauge\nb 1\n'),
        Exposition('# TYPE b gauge\nb{x="2"} 2\n# TYPE a histogram\na_bucket{le="+Inf"} 2\n'),
    ]
    async with exposed(*apps), collecting(at(*apps)) as collector:
        got = await collector.scrape()
    assert got.text.startswith('# TYPE a counter\na{x="1"} 1\n# TYPE b gauge\nb 1\nb{x="2"} 2\n')
    assert got.value('kumadp_scrape_source_skipped_families{source="app1"}') == 1


async def test_kumadp_tells_of_itself_and_of_coredns_only_what_is_theirs() -> None:
    coredns = Exposition("# TYPE coredns_x counter\ncoredns_x 1\n# TYPE go_goroutines gauge\ngo_goroutines 5\n")
    own = b"# TYPE kumadp_x gauge\nkumadp_x 1\n# TYPE process_cpu gauge\nprocess_cpu 1\n"
    async with (
        exposed(coredns),
        collecting(
            at(own=telling(own), coredns=lambda: BindAddress("127.0.0.1", coredns.port, "tcp", "", ""))
        ) as collector,
    ):
        got = await collector.scrape()
    assert (got.value("coredns_x"), got.value("kumadp_x"), got.up("coredns")) == (1, 1, True)
    assert "go_goroutines" not in got.text
    assert "process_cpu" not in got.text


async def test_what_kumadp_cannot_tell_of_itself_costs_nothing_else() -> None:
    async def own() -> tuple[bytes, str]:
        raise RuntimeError("no")

    app = Exposition(APP)
    async with exposed(app), collecting(at(app, own=own)) as collector:
        got = await collector.scrape()
        assert "RuntimeError" in collector.concerns["kumadp"]
    assert got.up("app0")


async def test_a_scraper_that_leaves_costs_nothing() -> None:
    app = Exposition(APP, how="hang")
    async with exposed(app), collecting(at(app)) as collector:
        with pytest.raises(TimeoutError):
            await collector.scrape(timeout=0.5)
        app.how = "well"
        assert (await collector.scrape()).up("app0")


async def test_applications_of_one_name_are_told_apart() -> None:
    apps = [Exposition(APP), Exposition(APP, status=500)]
    async with exposed(*apps):
        named = tuple(Application("same", "127.0.0.1", app.port, "metrics?x") for app in apps)
        async with collecting(Surroundings(lambda: named)) as collector:
            got = await collector.scrape()
    assert got.up("same")
    assert got.value(f'kumadp_scrape_source_up{{source="127.0.0.1:{apps[1].port}/metrics?x"}}') == 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 10), ("10", 9), ("0.5", 0.45), ("60", 59), ("x", 10), ("0", 10), ("inf", 10), ("-1", 10)],
)
def test_how_long_sources_have(header: str, seconds: float) -> None:
    assert allowed(header) == pytest.approx(seconds)


def test_the_query_is_written_as_go_writes_it() -> None:
    assert legacy_query("") == "format=prometheus&text_readouts="
    assert legacy_query("usedonly&filter=a+b%7Cc&filter=%ff") == (
        "filter=a+b%7Cc&filter=%FF&format=prometheus&text_readouts=&usedonly="
    )


async def test_scrapes_at_the_same_time() -> None:
    envoy, app = Exposition(ENVOY * 200), Exposition(APP)
    async with exposed(envoy, app), collecting(at(app, envoy=envoy)) as collector:
        got = await asyncio.gather(*(collector.scrape() for _ in range(8)))
    assert len({zlib.crc32(one.text.partition("# HELP kumadp_")[0].encode()) for one in got}) == 1


async def test_an_application_is_asked_for_its_path_as_written() -> None:
    app = Exposition(APP)
    async with exposed(app):
        paths = ("/metrics?format=x&a=%20b c#d", "metrics", "/a b/%2F")
        around = Surroundings(lambda: tuple(Application("", "127.0.0.1", app.port, path) for path in paths))
        async with collecting(around) as collector:
            got = await collector.scrape()
    asked = sorted(str(request.rel_url.raw_path_qs) for request in app.seen)
    assert asked == ["/a%20b/%2F", "/metrics", "/metrics?format=x&a=%20b%20c%23d"]
    assert got.up(f"127.0.0.1:{app.port}/metrics?format=x&a=%20b c#d")


async def test_a_concern_shows_what_was_asked() -> None:
    app = Exposition(APP, status=404)
    async with exposed(app):
        application = Application("", "127.0.0.1", app.port, "/metrics?format=x")
        async with collecting(Surroundings(lambda: (application,))) as collector:
            await collector.scrape()
            assert collector.concerns[f"127.0.0.1:{app.port}/metrics?format=x"] == "it answers with 404"


async def test_a_time_beyond_all_times_costs_its_own_sample() -> None:
    app = Exposition(f"# TYPE a gauge\na 1 {'9' * 400}\n")
    opened = Exposition(OPEN_APP, OPEN)
    async with exposed(app, opened), collecting(at(app, opened)) as collector:
        got = await collector.scrape()
    assert got.value("a") == 1
    assert got.text.endswith("# EOF\n")
