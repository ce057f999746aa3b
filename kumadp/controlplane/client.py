"""Fetches the bootstrap, for as long as it takes."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import tenacity

from kumadp.controlplane.retry import Action, Verdict, judge_answer, judge_error
from kumadp.controlplane.wire import BootstrapAnswer, UndecodableAnswer, decode_answer
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ATTEMPT_SECONDS = 10.0
# For connecting, the handshake, each read: less than the attempt, as httpx closes what hangs, a cancellation does not.
PHASE_SECONDS = 8.0
LONGEST_WAIT = 30.0
CERTIFICATE_TRIES = 3
MAX_ANSWER = 16 << 20


@dataclass(frozen=True, slots=True)
class Trust:
    """How the control plane is verified: ``ca`` PEM, empty for the system's store; or not at all."""

    ca: str
    verify: bool = True


class _Failed(Exception):
    """An attempt that may be repeated."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


async def fetch_bootstrap(
    url: str,
    make_request: Callable[[], Awaitable[tuple[bytes, Trust]]],
    *,
    backoff: float,
    max_duration: float | None,
    on_failure: Callable[[str], None],
) -> BootstrapAnswer:
    """``POST <url>/bootstrap`` until there is a bootstrap.

    ``make_request`` is awaited for each attempt, so that token and CA are read anew. Waits are exponential from
    ``backoff`` seconds with full jitter, up to 30 s; ``on_failure`` hears each reason. Raises ControlPlaneRefused on
    an answer that no retry can change (400, 401, 403, 422; a certificate that does not verify three times; a CA that
    is none) and ControlPlaneUnavailable after ``max_duration`` seconds; None means never.
    """
    certificate_tries = 0

    async def attempt() -> BootstrapAnswer:
        nonlocal certificate_tries
        verdict, answer = await _once(url, make_request)
        if answer is not None:
            return answer
        certificate_tries = certificate_tries + 1 if verdict.action is Action.RETRY_CERTIFICATE else 0
        if verdict.action is Action.STOP or certificate_tries >= CERTIFICATE_TRIES:
            raise ControlPlaneRefused(f"the control plane at {url} refused: {verdict.reason}", verdict.hint)
        raise _Failed(verdict)

    exponential = waits_from(backoff)

    def wait(state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        return max(exponential(state), failure.verdict.wait if isinstance(failure, _Failed) else 0.0)

    def tell(state: tenacity.RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, _Failed):
            verdict = failure.verdict
            on_failure(verdict.reason + (f" ({verdict.hint})" if verdict.hint else ""))

    stop: Any = tenacity.stop_never if max_duration is None else tenacity.stop_after_delay(max_duration)
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_Failed), wait=wait, stop=stop, before_sleep=tell, reraise=True
    )
    try:
        return await retrying(attempt)
    except _Failed as failed:
        raise ControlPlaneUnavailable(
            f"no bootstrap from {url} within {max_duration:g} s; the last try: {failed.verdict.reason}",
            failed.verdict.hint,
        ) from None


def waits_from(backoff: float) -> tenacity.wait_random_exponential:
    """Waits between attempts: doubling from ``backoff`` seconds to 30 s, with full jitter."""
    return tenacity.wait_random_exponential(multiplier=backoff, max=max(LONGEST_WAIT, backoff))


async def _once(
    url: str, make_request: Callable[[], Awaitable[tuple[bytes, Trust]]]
) -> tuple[Verdict, BootstrapAnswer | None]:
    body, trust = await make_request()
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            context = await asyncio.to_thread(make_context, trust) if url.startswith("https") else False
            status, headers, answer = await _post(bootstrap_url(url), body, context)
    except (OSError, TimeoutError, httpx.HTTPError, ValueError) as error:
        return judge_error(error), None
    verdict = judge_answer(status, headers, answer)
    if verdict.action is not Action.DECODE:
        return verdict, None
    try:
        return verdict, decode_answer(answer)
    except UndecodableAnswer as error:
        return Verdict(Action.RETRY, str(error), "does another server answer at this address?"), None


async def _post(url: str, body: bytes, context: ssl.SSLContext | bool) -> tuple[int, dict[str, str], bytes]:
    headers = {"accept": "application/json", "content-type": "application/json"}
    async with (
        httpx.AsyncClient(verify=context, trust_env=False, timeout=PHASE_SECONDS) as client,
        client.stream("POST", url, content=body, headers=headers) as answer,
    ):
        data = bytearray()
        async for part in answer.aiter_bytes():
            data += part
            if len(data) > MAX_ANSWER:
                raise ValueError(f"the answer is larger than {MAX_ANSWER >> 20} MiB")
        return answer.status_code, dict(answer.headers), bytes(data)


def bootstrap_url(url: str) -> str:
    """Scheme and host of the control plane's address, path ``/bootstrap``, query kept (Kuma 2.8)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "/bootstrap", parts.query, ""))


def make_context(trust: Trust) -> ssl.SSLContext:
    """TLS 1.2 or newer; a CA that is given is the only one (Kuma 2.14). May block.

    Raises ControlPlaneRefused where the CA is not PEM.
    """
    try:
        context = ssl.create_default_context(cadata=trust.ca or None)
    except (ssl.SSLError, ValueError, TypeError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ControlPlaneRefused(
            f"the control plane's CA is not a PEM certificate: {str(reason).lower().replace('_', ' ')}",
            "check --ca-cert-file or KUMA_CONTROL_PLANE_CA_CERT",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not trust.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
