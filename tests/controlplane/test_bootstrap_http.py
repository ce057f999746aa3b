"""The bootstrap request against a real HTTPS server: what is retried, what is final, what is read again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import gzip
import json
import socket
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from kumadp.controlplane import bootstrap_http
from kumadp.controlplane.bootstrap_http import Trust, bootstrap_url, fetch_bootstrap
from kumadp.controlplane.response_rules import AttemptAction, AttemptVerdict
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable
from tests.support.ports import free_port
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kumadp.controlplane.bootstrap_messages import BootstrapAnswer

GOOD = bootstrap_answer({"node": {"id": "default.web"}}, ".:15053 {}")
QUICK = 0.001


def request(ca: str, verify: bool = True) -> Callable[[], Awaitable[tuple[bytes, Trust]]]:
    async def create() -> tuple[bytes, Trust]:
        return b'{"name": "web"}', Trust(ca, verify)

    return create


async def fetch(
    url: str | tuple[str, ...],
    ca: str,
    *,
    verify: bool = True,
    reasons: list[str] | None = None,
    max_duration: float | None = None,
) -> BootstrapAnswer:
    collected = reasons if reasons is not None else []
    async with asyncio.timeout(60):
        return await fetch_bootstrap(
            (url,) if isinstance(url, str) else url,
            request(ca, verify),
            backoff=QUICK,
            max_duration=max_duration,
            on_failure=lambda failure: collected.append(str(failure)),
        )


TRANSIENT = {
    "500": (Answer(500, b"boom"), "HTTP 500: boom"),
    "502": (Answer(502), "HTTP 502"),
    "503": (Answer(503), "HTTP 503"),
    "408": (Answer(408), "HTTP 408"),
    "429": (Answer(429, b"", {"retry-after": "0"}), "HTTP 429"),
    "404 with an empty body": (Answer(404), "does not know this Dataplane"),
    "404 of another port": (Answer(404, b"404: Page Not Found"), "not the data plane server's port"),
    "404 of somebody else": (Answer(404, b"nothing here"), "check --cp-address"),
    "405": (Answer(405), "check --cp-address"),
    "302": (Answer(302, b"", {"location": "https://elsewhere.example/"}), "check --cp-address"),
    "not JSON": (Answer(200, b"<html>"), "not a bootstrap"),
    "JSON without a bootstrap": (Answer(200, b"{}"), "not a bootstrap"),
    "a list": (Answer(200, b"[]"), "not a bootstrap"),
    "a list in a list, and so on": (Answer(200, b"[" * 100_000), "not a bootstrap"),
    "bad base64": (Answer(200, b'{"bootstrap": "%%%"}'), "not a bootstrap"),
    "an empty body": (Answer(200), "not a bootstrap"),
    "a broken connection": (Answer(reset=True), ""),
    "a body cut short": (Answer(200, b"{", {"content-length": "100"}), ""),
}


@pytest.mark.parametrize("name", TRANSIENT)
async def test_a_transient_failure_is_retried_with_its_reason(name: str) -> None:
    answer, reason = TRANSIENT[name]
    reasons: list[str] = []
    with ScriptedControlPlane(answer, answer, GOOD) as plane:
        got = await fetch(plane.url, plane.ca, reasons=reasons)
        assert len(plane.requests) == 3
    assert json.loads(got.bootstrap) == {"node": {"id": "default.web"}}
    assert got.corefile_template == ".:15053 {}"
    assert len(reasons) == 2
    assert all(line and "\n" not in line for line in reasons)
    assert reason in reasons[0]


@pytest.mark.parametrize(
    ("status", "hint"), [(400, "version"), (401, "token"), (403, "token"), (422, "token and the Dataplane")]
)
async def test_a_final_answer_ends_it_at_once(status: int, hint: str) -> None:
    with ScriptedControlPlane(Answer(status, b"because"), GOOD) as plane:
        with pytest.raises(ControlPlaneRefused) as refused:
            await fetch(plane.url, plane.ca)
        assert len(plane.requests) == 1
    assert f"HTTP {status}: because" in str(refused.value)
    assert hint in str(refused.value)


async def test_an_unreachable_server_is_retried_until_it_answers() -> None:
    reasons: list[str] = []
    port = free_port()
    task = asyncio.create_task(fetch(f"http://127.0.0.1:{port}", "", reasons=reasons))
    while len(reasons) < 3:
        await asyncio.sleep(0)
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(line for line in reasons)


async def test_an_unknown_name_is_retried() -> None:
    reasons: list[str] = []
    with pytest.raises(ControlPlaneUnavailable):
        await fetch("https://control-plane.invalid:5678", "", reasons=reasons, max_duration=0.05)


@pytest.mark.parametrize(
    "address",
    [
        *("http://\u2024.x:5678", "http://a:b:5678", "http://a\ud800:5678", "http://\0:5678"),
        *("http://localhost:70000", "ftp://localhost:5678"),
    ],
)
async def test_an_address_that_no_request_can_be_sent_to_ends_it_at_once(address: str) -> None:
    with pytest.raises(ControlPlaneRefused) as refused:
        await fetch(address, "")
    assert "--cp-address" in str(refused.value)


async def test_the_time_that_the_user_allows_ends_it_with_the_last_reason() -> None:
    with ScriptedControlPlane(Answer(503, b"starting")) as plane:
        with pytest.raises(ControlPlaneUnavailable) as away:
            await fetch(plane.url, plane.ca, max_duration=0.2)
        assert len(plane.requests) > 1
    assert "HTTP 503: starting" in str(away.value)
    assert "0.2 s" in str(away.value)


async def test_an_unknown_ca_ends_it_after_three_tries() -> None:
    reasons: list[str] = []
    stranger = trustme.CA().cert_pem.bytes().decode()
    with ScriptedControlPlane(GOOD) as plane:
        with pytest.raises(ControlPlaneRefused) as refused:
            await fetch(plane.url, stranger, reasons=reasons)
        assert plane.requests == []
    assert len(reasons) == 2
    assert "--ca-cert-file" in str(refused.value)


async def test_an_address_in_capitals_is_verified_too() -> None:
    with ScriptedControlPlane(GOOD) as plane, pytest.raises(ControlPlaneRefused, match="certificate not verified"):
        await fetch(plane.url.replace("https:", "HTTPS:"), "")
    assert plane.requests == []


async def test_a_certificate_for_another_name_ends_it() -> None:
    stranger = ScriptedControlPlane(GOOD, names=("other.example",))
    with stranger as plane, pytest.raises(ControlPlaneRefused) as refused:
        await fetch(plane.url, plane.ca)
    assert "another name" in str(refused.value)


async def test_an_expired_certificate_points_to_the_clock() -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    with ScriptedControlPlane(GOOD, not_after=past) as plane, pytest.raises(ControlPlaneRefused) as refused:
        await fetch(plane.url, plane.ca)
    assert "clock" in str(refused.value)


async def test_without_a_ca_the_system_s_store_decides() -> None:
    with ScriptedControlPlane(GOOD) as plane, pytest.raises(ControlPlaneRefused):
        await fetch(plane.url, "")


async def test_a_certificate_in_the_system_s_store_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ScriptedControlPlane(GOOD) as plane:
        store = plane.write_ca(tmp_path_factory.mktemp("store") / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(store))
        assert (await fetch(plane.url, "")).bootstrap


async def test_skip_verify_takes_any_certificate() -> None:
    with ScriptedControlPlane(GOOD, names=("other.example",)) as plane:
        assert (await fetch(plane.url, "", verify=False)).bootstrap


@pytest.mark.parametrize("ca", ["no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "é"])
async def test_an_unreadable_ca_ends_it_at_once(ca: str) -> None:
    reasons: list[str] = []
    with ScriptedControlPlane(GOOD) as plane, pytest.raises(ControlPlaneRefused, match="CA is not a PEM"):
        await fetch(plane.url, ca, reasons=reasons)
    assert reasons == []


async def test_plain_http_is_used_for_an_http_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with ScriptedControlPlane(GOOD, tls=False) as plane:
        assert (await fetch(plane.url, "")).bootstrap
        assert plane.headers_seen[0]["accept"] == "application/json"
        assert plane.headers_seen[0]["content-type"] == "application/json"
        assert plane.headers_seen[0]["path"] == "/bootstrap"


async def test_https_to_a_plain_http_server_has_its_reason() -> None:
    reasons: list[str] = []
    with ScriptedControlPlane(GOOD, tls=False) as plane, pytest.raises(ControlPlaneUnavailable):
        await fetch(plane.url.replace("http:", "https:"), plane.ca, reasons=reasons, max_duration=0.1)
    assert any("does not speak TLS" in line for line in reasons)


async def test_an_answer_that_never_comes_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_http, "ATTEMPT_SECONDS", 0.2)
    reasons: list[str] = []
    with ScriptedControlPlane(Answer(hang=True), GOOD) as plane:
        assert (await fetch(plane.url, plane.ca, reasons=reasons)).bootstrap
    assert reasons == ["no answer in time"]


async def test_a_server_that_accepts_and_does_not_respond_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_http, "ATTEMPT_SECONDS", 0.2)
    reported: list[str] = []
    # On a busy host the first attempt may outlast 0.5 s: then only the exception has its reason.
    last = "the last try: no answer in time$"
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ControlPlaneUnavailable, match=last):
        await fetch(f"https://127.0.0.1:{silent.getsockname()[1]}", "", reasons=reported, max_duration=0.5)
    assert set(reported) <= {"no answer in time"}


async def test_an_endless_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_http, "MAX_ANSWER", 1000)
    reasons: list[str] = []
    with ScriptedControlPlane(Answer(200, b"x" * 100_000), GOOD) as plane:
        assert (await fetch(plane.url, plane.ca, reasons=reasons)).bootstrap
    assert "larger" in reasons[0]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_decompressed(encoding: str) -> None:
    body = gzip.compress(GOOD.body) if encoding == "gzip" else zlib.compress(GOOD.body)
    with ScriptedControlPlane(Answer(200, body, {"content-encoding": encoding})) as plane:
        assert (await fetch(plane.url, plane.ca)).bootstrap
        assert encoding in plane.headers_seen[0]["accept-encoding"]


async def test_an_answer_whose_encoding_is_wrong_is_retried() -> None:
    reasons: list[str] = []
    with ScriptedControlPlane(Answer(200, GOOD.body, {"content-encoding": "gzip"}), GOOD) as plane:
        assert (await fetch(plane.url, plane.ca, reasons=reasons)).bootstrap
    assert reasons == ["the answer broke off, or its encoding is wrong"]


async def test_a_compressed_answer_is_bounded_by_what_it_unpacks_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_http, "MAX_ANSWER", 1 << 20)
    reasons: list[str] = []
    large = Answer(200, gzip.compress(b" " * (50 << 20)), {"content-encoding": "gzip"})
    with ScriptedControlPlane(large, GOOD) as plane:
        assert (await fetch(plane.url, plane.ca, reasons=reasons)).bootstrap
    assert reasons == ["the answer is larger than 1 MiB"]


async def test_an_answer_that_comes_byte_by_byte_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_http, "ATTEMPT_SECONDS", 0.5)

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        ended.set()

    ended = asyncio.Event()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ControlPlaneUnavailable, match=r"the last try: no answer in time$"):
            await fetch(f"http://127.0.0.1:{port}", "", max_duration=0.1)
        await ended.wait()


async def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    original = socket.getaddrinfo

    def both(host: Any, port: Any, *others: Any, **named: Any) -> Any:
        if host != "cp.example":
            return original(host, port, *others, **named)
        return [
            info for address in ("127.0.0.2", "127.0.0.1") for info in original(address, port, type=socket.SOCK_STREAM)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with ScriptedControlPlane(GOOD, names=("cp.example",)) as plane:
        assert (await fetch(f"https://cp.example:{plane.port}", plane.ca)).bootstrap
        assert plane.names_seen == ["cp.example"]


async def test_a_short_form_of_an_address_is_for_the_resolver() -> None:
    with ScriptedControlPlane(GOOD, tls=False) as plane:
        assert (await fetch(f"http://127.1:{plane.port}", "")).bootstrap
        assert plane.headers_seen[0]["host"] == f"127.1:{plane.port}"


async def test_user_and_password_of_an_address_are_sent() -> None:
    with ScriptedControlPlane(GOOD, tls=False) as plane:
        await fetch(plane.url.replace("//", "//m%C3%A4x:p%3Aw@"), "")
        sent = plane.headers_seen[0]["authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == "m\u00e4x:p:w"


async def test_proxy_variables_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with ScriptedControlPlane(GOOD) as plane:
        assert (await fetch(plane.url, plane.ca)).bootstrap


@pytest.mark.parametrize(
    ("status_line", "reason"),
    [(b"ICY 200 OK", "not HTTP"), (b"", "not complete"), (b"\x16\x03\x01", "not HTTP")],
)
async def test_what_is_not_http_is_retried(status_line: bytes, reason: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        # What is left unread would reset the connection.
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        writer.write(status_line + b"\r\n\r\n" if status_line else b"")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ControlPlaneUnavailable) as failed:
            await fetch(f"http://127.0.0.1:{port}", "", max_duration=0.1)
    assert reason in str(failed.value)


async def test_an_unreachable_address_has_a_plain_reason() -> None:
    with pytest.raises(ControlPlaneUnavailable, match=r"the last try: Connection refused$"):
        await fetch(f"http://localhost:{free_port()}", "", max_duration=0.1)


async def test_request_and_trust_are_created_for_each_attempt() -> None:
    with ScriptedControlPlane(Answer(503), GOOD) as plane:
        created = 0

        async def create() -> tuple[bytes, Trust]:
            nonlocal created
            created += 1
            return json.dumps({"dataplaneToken": f"token-{created}"}).encode(), Trust(plane.ca)

        async with asyncio.timeout(30):
            await fetch_bootstrap(
                (plane.url,), create, backoff=QUICK, max_duration=None, on_failure=lambda _reason: None
            )
        assert [seen["dataplaneToken"] for seen in plane.requests] == ["token-1", "token-2"]


@pytest.mark.parametrize("addresses", [1, 3])
async def test_waits_double_from_round_to_round_up_to_30_seconds_with_full_jitter(
    addresses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[float]] = []

    async def attempt(*_arguments: object) -> tuple[AttemptVerdict, None]:
        return AttemptVerdict(AttemptAction.RETRY, "busy"), None

    async def sleep(seconds: float) -> None:
        drawn[-1].append(seconds)
        if len(drawn[-1]) == addresses * 7:
            raise TimeoutError

    monkeypatch.setattr(bootstrap_http, "_attempt", attempt)
    monkeypatch.setattr("asyncio.sleep", sleep)
    for _ in range(300):
        drawn.append([])
        with pytest.raises(TimeoutError):
            await fetch_bootstrap(
                [f"http://{number}" for number in range(addresses)],
                request(""),
                backoff=3.0,
                max_duration=None,
                on_failure=lambda _reason: None,
            )
    for number, waits in enumerate(zip(*drawn, strict=True), 1):
        if number % addresses:
            assert set(waits) == {0.0}
            continue
        longest = min(40.0, 3.0 * 2 ** (number // addresses - 1))
        least = 0.5 * longest if longest == 40.0 else 0.0
        assert least <= min(waits) < least + longest * 0.25
        assert longest * 0.75 < max(waits) <= longest


async def test_the_server_s_retry_after_is_the_shortest_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    busy = Answer(429, b"", {"retry-after": "7"})
    with ScriptedControlPlane(busy, GOOD) as plane:
        monkeypatch.setattr("asyncio.sleep", sleep)
        await fetch(plane.url, plane.ca)
    # Others may have got the same answer: each has its own jitter on top.
    assert 7.0 < waits[0] <= 7.0 + QUICK


async def test_several_addresses_are_tried_in_turn_and_the_answer_has_its_address() -> None:
    reasons: list[str] = []
    nobody = f"http://127.0.0.1:{free_port()}"
    busy = ScriptedControlPlane(Answer(503, b"busy"), tls=False)
    with busy, ScriptedControlPlane(Answer(503, b"starting"), GOOD, tls=False) as plane:
        got = await fetch((nobody, busy.url, plane.url), "", reasons=reasons)
        assert len(busy.requests) == 2
        assert len(plane.requests) == 2
    assert got.url == plane.url
    assert [line.split(": ")[0] for line in reasons] == [nobody, busy.url, plane.url, nobody, busy.url]
    assert reasons[1] == f"{busy.url}: HTTP 503: busy"


async def test_each_address_can_be_tried_once() -> None:
    failures: list[ControlPlaneUnavailable] = []
    nobody = f"http://127.0.0.1:{free_port()}"
    with ScriptedControlPlane(Answer(503, b"starting"), GOOD, tls=False) as plane:
        with pytest.raises(ControlPlaneUnavailable) as failed:
            await fetch_bootstrap(
                (nobody, plane.url), request(""), backoff=1e6, max_duration=None, on_failure=failures.append, once=True
            )
        assert len(plane.requests) == 1
    assert [str(failure).split(": ")[0] for failure in failures] == [nobody, plane.url]
    assert str(failed.value) == str(failures[-1]) == f"{plane.url}: HTTP 503: starting"


async def test_the_next_address_is_tried_at_once() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with ScriptedControlPlane(GOOD, tls=False) as plane:
        async with asyncio.timeout(30):
            got = await fetch_bootstrap(
                (nobody, plane.url), request(""), backoff=1e6, max_duration=None, on_failure=lambda _reason: None
            )
    assert got.url == plane.url


async def test_a_refusal_is_final_once_every_address_refused() -> None:
    reasons: list[str] = []
    with (
        ScriptedControlPlane(Answer(401, b"who?"), tls=False) as first,
        ScriptedControlPlane(Answer(503), Answer(503), Answer(403, b"not you"), tls=False) as second,
    ):
        with pytest.raises(ControlPlaneRefused, match="not you") as refused:
            await fetch((first.url, second.url), "", reasons=reasons)
        assert len(first.requests) == 3
        assert len(second.requests) == 3
    assert second.url in str(refused.value)


async def test_an_address_that_refuses_does_not_block_one_that_answers() -> None:
    with (
        ScriptedControlPlane(Answer(401), tls=False) as first,
        ScriptedControlPlane(Answer(503), GOOD, tls=False) as second,
    ):
        assert (await fetch((first.url, second.url), "")).url == second.url


async def test_certificates_are_counted_for_each_address() -> None:
    reasons: list[str] = []
    with (
        ScriptedControlPlane(GOOD, names=("other.example",)) as first,
        ScriptedControlPlane(GOOD, names=("other.example",)) as second,
        pytest.raises(ControlPlaneRefused, match="certificate not verified"),
    ):
        await fetch((first.url, second.url), first.ca, reasons=reasons)
    assert len(reasons) == 5


@pytest.mark.parametrize(
    ("address", "requested"),
    [
        ("https://cp:5678", "https://cp:5678/bootstrap"),
        ("https://cp:5678/", "https://cp:5678/bootstrap"),
        ("https://cp:5678/some/path?zone=a", "https://cp:5678/bootstrap?zone=a"),
        ("http://[::1]:5678", "http://[::1]:5678/bootstrap"),
    ],
)
def test_the_path_is_bootstrap_and_the_query_stays(address: str, requested: str) -> None:
    assert bootstrap_url(address) == requested
