"""Fetches the bootstrap, for as long as it takes."""

from __future__ import annotations

import asyncio
import collections
import itertools
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import tenacity

from kumadp.addresses import server_name, with_port
from kumadp.controlplane.bootstrap_messages import BootstrapAnswer, UndecodableAnswer, decode_answer
from kumadp.controlplane.response_rules import AttemptAction, AttemptVerdict, judge_answer, judge_error
from kumadp.controlplane.trust import Trust as Trust
from kumadp.controlplane.trust import make_context as make_context
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable
from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

ATTEMPT_SECONDS = 10.0
# For connecting, the handshake, each read: less than the attempt, as httpx closes what hangs, a cancellation does not.
PHASE_SECONDS = 8.0
LONGEST_WAIT = 30.0
CERTIFICATE_TRIES = 3
MAX_ANSWER = 16 << 20


class _Failed(Exception):
    """An attempt that may be repeated."""

    def __init__(self, url: str, verdict: AttemptVerdict) -> None:
        super().__init__(verdict.reason)
        self.url = url
        self.verdict = verdict


async def fetch_bootstrap(
    urls: Sequence[str],
    make_request: Callable[[], Awaitable[tuple[bytes, Trust]]],
    *,
    backoff: float,
    max_duration: float | None,
    on_failure: Callable[[str], None],
) -> BootstrapAnswer:
    """``POST <url>/bootstrap`` until there is a bootstrap; ``urls``, one at least, are asked in turn.

    ``make_request`` is awaited for each attempt, so that token and CA are read anew. After each round of all addresses
    comes a wait, exponential from ``backoff`` seconds with full jitter, up to 30 s; ``on_failure`` hears each reason.
    Raises ControlPlaneRefused on an answer that no retry can change (400, 401, 403, 422; a certificate that does not
    verify three times; a CA that is none), where there are several addresses once each of them has given one; and
    ControlPlaneUnavailable after ``max_duration`` seconds; None means never.
    """
    refusals = _Refusals(urls)
    turns = itertools.cycle(urls)
    waits: dict[str, float] = {}

    async def attempt() -> BootstrapAnswer:
        url = next(turns)
        verdict, answer = await _once(url, make_request)
        if answer is not None:
            return answer
        if refusals.note(url, verdict):
            raise ControlPlaneRefused(f"the control plane at {url} refused: {verdict.reason}", verdict.hint)
        raise _Failed(url, verdict)

    exponential = waits_from(backoff, len(urls))

    def wait(state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, _Failed):
            waits[failure.url] = failure.verdict.wait
        if state.attempt_number % len(urls):
            return 0.0
        return max(exponential(state), min(waits.values(), default=0.0))

    def tell(state: tenacity.RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, _Failed):
            verdict = failure.verdict
            which = f"{failure.url}: " if len(urls) > 1 else ""
            on_failure(which + verdict.reason + (f" ({verdict.hint})" if verdict.hint else ""))

    stop: Any = tenacity.stop_never if max_duration is None else tenacity.stop_after_delay(max_duration)
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_Failed), wait=wait, stop=stop, before_sleep=tell, reraise=True
    )
    try:
        return await retrying(attempt)
    except _Failed as failed:
        raise ControlPlaneUnavailable(
            f"no bootstrap from {', '.join(urls)} within {max_duration:g} s; the last try: {failed.verdict.reason}",
            failed.verdict.hint,
        ) from None


class _Refusals:
    """Which addresses gave, the last time they answered, an answer that no retry can change."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._missing = set(urls)
        self._bad_certificates = collections.Counter[str]()

    def note(self, url: str, verdict: AttemptVerdict) -> bool:
        """Take in a verdict; True when all have refused."""
        if verdict.action is AttemptAction.RETRY_CERTIFICATE:
            self._bad_certificates[url] += 1
        else:
            self._bad_certificates[url] = 0
        if verdict.action is AttemptAction.STOP or self._bad_certificates[url] >= CERTIFICATE_TRIES:
            self._missing.discard(url)
        elif verdict.action is not AttemptAction.RETRY_CERTIFICATE:
            self._missing.add(url)
        return not self._missing


def waits_from(backoff: float, attempts_a_round: int = 1) -> tenacity.wait_random_exponential:
    """Waits between rounds of attempts: doubling from ``backoff`` seconds to 30 s, with full jitter."""
    base = 2 ** (1 / attempts_a_round)
    # The first wait comes after the last attempt of the first round.
    first = backoff / base ** (attempts_a_round - 1)
    return tenacity.wait_random_exponential(multiplier=first, max=max(LONGEST_WAIT, backoff), exp_base=base)


async def _once(
    url: str, make_request: Callable[[], Awaitable[tuple[bytes, Trust]]]
) -> tuple[AttemptVerdict, BootstrapAnswer | None]:
    try:
        body, trust = await make_request()
    except OSError as error:
        if is_exhausted(error):
            return judge_error(error), None
        raise
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            asked = bootstrap_url(url)
            context = await asyncio.to_thread(make_context, trust) if asked.startswith("https:") else False
            status, headers, answer = await _post(asked, body, context)
    except httpx.InvalidURL as error:
        return AttemptVerdict(AttemptAction.STOP, f"{url} is not an address: {error}", "check --cp-address"), None
    # anyio, below httpx, wraps what it does not expect of a connection attempt in a group.
    except (OSError, TimeoutError, httpx.HTTPError, httpx.StreamError, ValueError, ExceptionGroup) as error:
        return judge_error(error), None
    verdict = judge_answer(status, headers, answer)
    if verdict.action is not AttemptAction.DECODE:
        return verdict, None
    try:
        return verdict, decode_answer(answer, url)
    except UndecodableAnswer as error:
        return AttemptVerdict(AttemptAction.RETRY, str(error), "does another server answer at this address?"), None


async def _post(url: str, body: bytes, context: ssl.SSLContext | bool) -> tuple[int, dict[str, str], bytes]:
    target = httpx.URL(url)
    name = server_name(target.host)
    host = with_port(name, target.port) if target.port is not None else f"[{name}]" if ":" in name else name
    headers = {"accept": "application/json", "content-type": "application/json", "host": host}
    async with (
        httpx.AsyncClient(verify=context, trust_env=False, timeout=PHASE_SECONDS) as client,
        client.stream("POST", target, content=body, headers=headers, extensions={"sni_hostname": name}) as answer,
    ):
        data = bytearray()
        async for part in answer.aiter_bytes():
            data += part
            if len(data) > MAX_ANSWER:
                raise ValueError(f"the answer is larger than {MAX_ANSWER >> 20} MiB")
        return answer.status_code, dict(answer.headers), bytes(data)


def bootstrap_url(url: str) -> str:
    """Scheme, in lower case, and host of the control plane's address, path ``/bootstrap``, query kept (Kuma 2.8)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "/bootstrap", parts.query, ""))
