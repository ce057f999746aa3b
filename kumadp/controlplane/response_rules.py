"""Rules which answers of the control plane are retried and which are final. Pure."""

from __future__ import annotations

import enum
import os
import ssl
import time
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

REASON_LENGTH = 300
LONGEST_RETRY_AFTER = 300.0
# Kuma's 404 body if the port is not the data plane server's.
WRONG_PORT = "404: Page Not Found"


class AttemptAction(enum.Enum):
    """What follows an attempt."""

    DECODE = "decode"
    RETRY = "retry"
    STOP = "stop"
    RETRY_CERTIFICATE = "retry a few times"


class AttemptVerdict(Struct, frozen=True):
    """What follows an attempt, the reason, a hint, and the shortest wait before the next one (``Retry-After``, s).

    ``content``: the answer rejects what the request holds, not who sends it.
    """

    action: AttemptAction
    reason: str = ""
    hint: str = ""
    wait: float = 0.0
    content: bool = False


_HINTS = {
    400: "the control plane did not understand the request: compare its version with this one's",
    401: "give a valid token with --dataplane-token-file",
    403: "the token is for another mesh, name or proxy type",
    422: "look at the token and the Dataplane: mesh, name and tags must fit the token",
}
# A control plane of another version may not know the request, or not accept the Dataplane.
_OF_CONTENT = frozenset({400, 422})


def judge_answer(status: int, headers: Mapping[str, str], body: bytes) -> AttemptVerdict:
    """Return the verdict on an HTTP answer (Kuma 2.8: 404 in its two forms is retried; 408, 429 and 5xx too)."""
    if status == 200:
        return AttemptVerdict(AttemptAction.DECODE)
    text = one_line(body)
    reason = f"HTTP {status}" + (f": {text}" if text else "")
    if status == 404 and not body.strip():
        return AttemptVerdict(
            AttemptAction.RETRY,
            "404: the control plane does not know this Dataplane",
            "create it, or give --dataplane-file",
        )
    if status == 404 and text == WRONG_PORT:
        return AttemptVerdict(
            AttemptAction.RETRY, reason, "this is not the data plane server's port, which is 5678 by default"
        )
    if status in {408, 429} or status >= 500:
        return AttemptVerdict(AttemptAction.RETRY, reason, wait=_retry_after(headers))
    if status in _HINTS:
        return AttemptVerdict(AttemptAction.STOP, reason, _HINTS[status], content=status in _OF_CONTENT)
    return AttemptVerdict(AttemptAction.RETRY, reason, "no bootstrap server answers like this: check --cp-address")


def judge_error(error: BaseException) -> AttemptVerdict:
    """Return the verdict on a request that got no answer."""
    # aiohttp wraps what OpenSSL and the kernel report, in errors of the same classes without their attributes.
    while isinstance(error, OSError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return AttemptVerdict(
                AttemptAction.RETRY_CERTIFICATE, f"certificate not verified: {cause.verify_message}", _tls_hint(cause)
            )
        if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
            return AttemptVerdict(
                AttemptAction.RETRY, "the port does not speak TLS", "is it an http port? check --cp-address"
            )
        if isinstance(cause, TimeoutError):
            return AttemptVerdict(AttemptAction.RETRY, "no answer in time")
        cause = cause.__cause__ or cause.__context__
    return AttemptVerdict(AttemptAction.RETRY, one_line(_text(error).encode()) or type(error).__name__)


def _text(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno:
        # Errors of the resolver have numbers below 0; and libraries add addresses to the text.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)
    return str(error)


def _tls_hint(error: ssl.SSLCertVerificationError) -> str:
    # The numbers are OpenSSL's X509_V_ERR_*.
    if error.verify_code in {9, 10}:
        return "the certificate's dates do not fit this host's clock"
    if error.verify_code in {62, 64}:
        return "the certificate is for another name than --cp-address"
    return "give the control plane's CA with --ca-cert-file"


def _retry_after(headers: Mapping[str, str]) -> float:
    """Parse seconds or a date (RFC 9110, 10.2.3); anything else counts as absent."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:6]), LONGEST_RETRY_AFTER)
    if not text:
        return 0.0
    from email.utils import parsedate_to_datetime

    try:
        wait = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER)


def one_line(body: bytes) -> str:
    """Return the beginning of a body as one line of printable text."""
    text = " ".join(body[: REASON_LENGTH * 4].decode("utf-8", "replace").split())
    return "".join(letter for letter in text if letter.isprintable())[:REASON_LENGTH]
