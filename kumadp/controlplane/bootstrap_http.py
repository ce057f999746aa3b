"""Requests the bootstrap over HTTP and retries until there is one."""

from __future__ import annotations

import asyncio
import base64
import collections
import itertools
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from msgspec.structs import replace

from kumadp import __version__
from kumadp.addresses import is_host_name, is_ip, request_target, server_name, with_port
from kumadp.controlplane.bootstrap_messages import BootstrapAnswer, UndecodableAnswer, decode_answer
from kumadp.controlplane.response_rules import AttemptAction, AttemptVerdict, judge_answer, judge_error
from kumadp.controlplane.trust import Trust as Trust
from kumadp.controlplane.trust import make_context as make_context
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable
from kumadp.host.backoff import Backoff
from kumadp.host.descriptors import is_exhausted
from kumadp.host.net.host_lookup import connect_any, numeric_addresses
from kumadp.host.net.http1.client import encode_request, exchange
from kumadp.host.net.http1.heads import MalformedMessage

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping, Sequence

ATTEMPT_SECONDS = 10.0
# How long each address has to accept the connection, so that the attempt has a reason of its own.
CONNECT_SECONDS = 8.0
# Between two rounds of all addresses (seconds). After a long outage at most one sidecar in 30 sends a request in any
# second on average, which a control plane that comes back can serve (`tests/support/storm.py`).
LONGEST_WAIT = 40.0
CERTIFICATE_TRIES = 3
MAX_ANSWER = 16 << 20
# The beginning of an answer in which a reason is searched (bytes).
_ADVISED = 64 << 10
_DEFAULT_PORTS = {"http": 80, "https": 443}


class InvalidAddress(ValueError):
    """A control plane address that no request can be sent to."""


async def fetch_bootstrap(
    urls: Sequence[str],
    make_request: Callable[[], Awaitable[tuple[bytes, Trust]]],
    *,
    backoff: float,
    max_duration: float | None,
    on_failure: Callable[[ControlPlaneUnavailable], None],
    once: bool = False,
    advise: Callable[[int, str], str] = lambda _status, _text: "",
    on_connected: Callable[[], object] = lambda: None,
) -> BootstrapAnswer:
    """Send ``POST <url>/bootstrap`` until there is a bootstrap; ``urls``, at least one, are tried in turn.

    ``make_request`` is awaited for each attempt, so that token and CA are read again. After each round of all addresses
    there is a wait (`retry_waits`), after the time that ``Retry-After`` names. ``on_failure`` is called with each
    failed attempt. ``once``: each address is tried once. ``advise`` returns what to change after an answer with this
    status and text, an empty text if it does not know. ``on_connected`` is called when a request is about to be sent.

    Raises ControlPlaneRefused on an answer that no retry can change (400, 401, 403, 422; a certificate that fails
    verification three times; an unreadable CA), with several addresses once each of them has given one; and
    ControlPlaneUnavailable after ``max_duration`` seconds (None means never), or after the last address with ``once``.
    """
    refusals = _Refusals(urls)
    least_waits: dict[str, float] = {}
    waits = retry_waits(backoff)
    started = time.monotonic()
    for number, url in enumerate(itertools.cycle(urls), 1):
        verdict, answer = await _attempt(url, make_request, advise, on_connected)
        if answer is not None:
            return answer
        if refusals.note(url, verdict):
            reason = f"the control plane at {url} refused: {verdict.reason}"
            raise ControlPlaneRefused(reason, verdict.hint, content=verdict.content)
        if max_duration is not None and time.monotonic() - started >= max_duration:
            raise ControlPlaneUnavailable(
                f"no bootstrap from {', '.join(urls)} within {max_duration:g} s; the last try: {verdict.reason}",
                verdict.hint,
            )
        which = f"{url}: " if len(urls) > 1 else ""
        failure = ControlPlaneUnavailable(which + verdict.reason, verdict.hint)
        on_failure(failure)
        if once and number == len(urls):
            raise failure
        least_waits[url] = verdict.wait
        # All sidecars may have got the same Retry-After: they come back one after the other.
        await asyncio.sleep(0.0 if number % len(urls) else min(least_waits.values()) + waits.wait())
    raise ValueError("no control plane address")


def retry_waits(backoff: float) -> Backoff:
    """Return the waits between requests: exponential from ``backoff`` seconds, with full jitter up to the longest."""
    return Backoff(backoff, max(LONGEST_WAIT, backoff), keep=0.0, keep_at_cap=0.5)


class _Refusals:
    """The addresses whose last answer was one that no retry can change."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._missing = set(urls)
        self._bad_certificates = collections.Counter[str]()

    def note(self, url: str, verdict: AttemptVerdict) -> bool:
        """Take in a verdict; return True once all addresses have refused."""
        if verdict.action is AttemptAction.RETRY_CERTIFICATE:
            self._bad_certificates[url] += 1
        else:
            self._bad_certificates[url] = 0
        if verdict.action is AttemptAction.STOP or self._bad_certificates[url] >= CERTIFICATE_TRIES:
            self._missing.discard(url)
        elif verdict.action is not AttemptAction.RETRY_CERTIFICATE:
            self._missing.add(url)
        return not self._missing


async def _attempt(
    url: str,
    make_request: Callable[[], Awaitable[tuple[bytes, Trust]]],
    advise: Callable[[int, str], str],
    on_connected: Callable[[], object],
) -> tuple[AttemptVerdict, BootstrapAnswer | None]:
    try:
        body, trust = await make_request()
    except OSError as error:
        if is_exhausted(error):
            return judge_error(error), None
        raise
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            target = _target(bootstrap_url(url))
            context = await asyncio.to_thread(_tls_context, trust) if target.scheme == "https" else None
            status, headers, answer = await _post(target, body, context, on_connected)
    except InvalidAddress as error:
        return AttemptVerdict(AttemptAction.STOP, f"{url} is not an address: {error}", "check --cp-address"), None
    except MalformedMessage as error:
        return AttemptVerdict(AttemptAction.RETRY, f"not HTTP: {error}"), None
    except (OSError, TimeoutError, ValueError) as error:
        return judge_error(error), None
    verdict = judge_answer(status, headers, answer)
    if verdict.action is not AttemptAction.DECODE:
        advice = advise(status, answer[:_ADVISED].decode("utf-8", "replace"))
        return replace(verdict, hint=advice or verdict.hint), None
    try:
        return verdict, decode_answer(answer, url)
    except UndecodableAnswer as error:
        return AttemptVerdict(AttemptAction.RETRY, str(error), "does another server answer at this address?"), None


class _Target(NamedTuple):
    """Where a request goes: ``host`` is resolved and connected to, ``name`` is the host in TLS and HTTP."""

    scheme: str
    host: str
    port: int
    name: str
    headers: dict[str, str]
    path: str


def _target(url: str) -> _Target:
    """Take a URL apart; raises InvalidAddress."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidAddress(str(error)) from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidAddress(f"{parts.scheme!r} is not http or https")
    if not is_ip(host) and not is_host_name(host):
        raise InvalidAddress(f"{host!r} is not a host name")
    default, name = _DEFAULT_PORTS[parts.scheme], server_name(host)
    shown = f"[{name}]" if ":" in name else name
    headers = {"host": shown if port in (None, default) else with_port(name, port or 0)}
    if parts.username or parts.password:
        user, password = (unquote_to_bytes(part or "") for part in (parts.username, parts.password))
        headers["authorization"] = f"Basic {base64.b64encode(user + b':' + password).decode()}"
    path = request_target(parts.path + (f"?{parts.query}" if parts.query else ""))
    return _Target(parts.scheme, host, port or default, name, headers, path)


async def _post(
    target: _Target, body: bytes, tls: ssl.SSLContext | None, on_connected: Callable[[], object]
) -> tuple[int, Mapping[str, str], bytes]:
    """Send the request; return status, headers with names in lower case, and body. Proxy variables do not count."""
    fields = {
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        "content-type": "application/json",
        "user-agent": f"kumadp/{__version__}",
        **target.headers,
    }
    request = encode_request("POST", target.path, fields.items(), body)
    sock = await connect_any(await numeric_addresses(target.host, target.port), target.port, CONNECT_SECONDS)
    on_connected()
    answer = await exchange(sock, request, max_body=MAX_ANSWER + 1, tls=tls, server=target.name)
    headers = {name: ", ".join(values) for name, values in answer.head.fields.values.items()}
    data = answer.body
    if len(data) <= MAX_ANSWER and (encoding := headers.get("content-encoding", "").lower()) not in {"", "identity"}:
        data = _unpacked(data, encoding)
    if len(data) > MAX_ANSWER:
        raise ValueError(f"the answer is larger than {MAX_ANSWER >> 20} MiB")
    return answer.head.status, headers, data


def _unpacked(data: bytes, encoding: str) -> bytes:
    """Return the content of a packed answer, at most one byte more than `MAX_ANSWER`; raises ValueError."""
    import zlib

    # 32: gzip or zlib, whichever its header says. What calls itself deflate may lack a header (RFC 9110, 8.4.1.2).
    raw = encoding == "deflate" and data[:1] and data[0] & 0x0F != 8
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
    try:
        content = unpacker.decompress(data, MAX_ANSWER + 1)
    except zlib.error:
        content = b""
    if not unpacker.eof and len(content) <= MAX_ANSWER:
        raise ValueError("the answer broke off, or its encoding is wrong")
    return content


def _tls_context(trust: Trust) -> ssl.SSLContext:
    context = make_context(trust)
    context.set_alpn_protocols(["http/1.1"])
    return context


def bootstrap_url(url: str) -> str:
    """Return the control plane's address with path ``/bootstrap``: scheme in lower case, query kept (Kuma 2.8)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "/bootstrap", parts.query, ""))
