"""Which answers heal and which do not: the whole table, pure."""

from __future__ import annotations

import email.utils
import ssl
import time

import pytest

from kumadp.controlplane.response_rules import LONGEST_RETRY_AFTER, AttemptAction, judge_answer, judge_error, one_line


@pytest.mark.parametrize(
    ("status", "body", "action", "reason"),
    [
        (200, b"{}", AttemptAction.DECODE, ""),
        (400, b"bad request", AttemptAction.STOP, "HTTP 400: bad request"),
        (401, b"", AttemptAction.STOP, "HTTP 401"),
        (403, b"token", AttemptAction.STOP, "HTTP 403: token"),
        (422, b"Resource is not valid", AttemptAction.STOP, "HTTP 422: Resource is not valid"),
        (404, b"", AttemptAction.RETRY, "does not know this Dataplane"),
        (404, b" \n", AttemptAction.RETRY, "does not know this Dataplane"),
        (404, b"404: Page Not Found", AttemptAction.RETRY, "404: Page Not Found"),
        (404, b"<html>gone</html>", AttemptAction.RETRY, "HTTP 404: <html>gone</html>"),
        (405, b"", AttemptAction.RETRY, "HTTP 405"),
        (408, b"", AttemptAction.RETRY, "HTTP 408"),
        (410, b"", AttemptAction.RETRY, "HTTP 410"),
        (429, b"slow down", AttemptAction.RETRY, "HTTP 429: slow down"),
        (500, b"", AttemptAction.RETRY, "HTTP 500"),
        (502, b"", AttemptAction.RETRY, "HTTP 502"),
        (503, b"", AttemptAction.RETRY, "HTTP 503"),
        (302, b"", AttemptAction.RETRY, "HTTP 302"),
        (204, b"", AttemptAction.RETRY, "HTTP 204"),
    ],
)
def test_each_answer_is_repeated_or_not(status: int, body: bytes, action: AttemptAction, reason: str) -> None:
    verdict = judge_answer(status, {}, body)
    assert verdict.action is action
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("status", "content"), [(400, True), (401, False), (403, False), (422, True), (500, False), (404, False)]
)
def test_what_is_rejected_is_the_content_or_the_sender(status: int, content: bool) -> None:
    assert judge_answer(status, {}, b"no").content is content


@pytest.mark.parametrize("status", [400, 401, 403, 422])
def test_every_stop_has_a_hint(status: int) -> None:
    assert judge_answer(status, {}, b"").hint


def test_the_wrong_port_is_named() -> None:
    assert "data plane server's port" in judge_answer(404, {}, b"404: Page Not Found").hint


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("99999999999999999", LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER),
        (email.utils.formatdate(time.time() + 3600, usegmt=True), LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER),
        (email.utils.formatdate(time.time() - 3600, usegmt=True), 0, 0),
        ("soon", 0, 0),
        ("-3", 0, 0),
        ("", 0, 0),
    ],
    # Times would give each worker of a run in parallel other names.
    ids=["seconds", "none", "many", "a date to come", "a date gone", "a word", "less than none", "nothing"],
)
def test_retry_after_is_honoured_in_both_forms(text: str, least: float, most: float) -> None:
    assert least <= judge_answer(429, {"retry-after": text}, b"").wait <= most
    assert least <= judge_answer(503, {"retry-after": text}, b"").wait <= most


def unverified(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_code, error.verify_message = code, "reported by OpenSSL"
    return error


@pytest.mark.parametrize(
    ("code", "hint"), [(10, "clock"), (9, "clock"), (62, "another name"), (64, "another name"), (20, "--ca-cert-file")]
)
def test_a_certificate_that_does_not_verify_has_a_hint(code: int, hint: str) -> None:
    outer = OSError("wrapped")
    outer.__cause__ = unverified(code)
    verdict = judge_error(outer)
    assert verdict.action is AttemptAction.RETRY_CERTIFICATE
    assert "reported by OpenSSL" in verdict.reason
    assert hint in verdict.hint


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "no answer in time"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError(), "OSError"),
    ],
)
def test_what_got_no_answer_is_repeated_with_its_reason(error: BaseException, reason: str) -> None:
    verdict = judge_error(error)
    assert verdict.action is AttemptAction.RETRY
    assert reason in verdict.reason


def test_a_body_becomes_one_short_printable_line() -> None:
    line = one_line(b"first\n\x1b[31msecond\x00 " + b"x" * 10_000)
    assert line.startswith("first [31msecond x")
    assert len(line) <= 300
