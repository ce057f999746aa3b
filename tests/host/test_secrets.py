"""Secrets that were read are masked, even if one is read at the same time."""

from __future__ import annotations

import sys
import threading

import pytest

from kumadp.host.log import secrets
from kumadp.host.log.secrets import holds_secret, redact, register


@pytest.fixture(autouse=True)
def nothing_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_secrets", ())


def test_each_long_line_of_a_secret_is_masked() -> None:
    register("first-line-of-it\nshort\nsecond-line-of-it")
    assert redact("a first-line-of-it b second-line-of-it c short") == "a *** b *** c short"
    assert holds_secret(b"x second-line-of-it")
    assert not holds_secret(b"short")


def test_a_token_that_is_rotated_while_lines_are_written_loses_no_line() -> None:
    for number in range(200):
        register(f"a-first-secret-{number}")
    done = threading.Event()

    def rotate() -> None:
        number = 0
        while not done.is_set():
            register(f"a-rotated-secret-{number}")
            number += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    rotating = threading.Thread(target=rotate)
    rotating.start()
    try:
        for _ in range(2000):
            assert redact("a line without any") == "a line without any"
    finally:
        done.set()
        rotating.join()
        sys.setswitchinterval(interval)


def test_of_tokens_that_are_rotated_for_years_the_newest_and_those_in_use_are_masked() -> None:
    register("the-one-in-use")
    for number in range(secrets.MOST):
        register(f"a-rotated-secret-{number:04}")
        register("the-one-in-use")
    assert len(secrets._secrets) == secrets.MOST
    assert redact(f"the-one-in-use a-rotated-secret-{secrets.MOST - 1:04}") == "*** ***"
