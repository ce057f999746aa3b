"""A process without descriptors knows nothing of others: nobody is taken for dead, for private, or for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket

import pytest

from kumadp.dns.exchange import Asked, by_udp
from kumadp.envoy.probe import Place, Prober
from kumadp.host.descriptors import is_exhausted
from tests.support.hostile import no_descriptors_left


async def test_an_admin_that_cannot_be_asked_is_not_private() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = Place("127.0.0.1", server.getsockname()[1])
        prober = Prober("127.0.0.1:9901", 5.0)
        with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
            await prober.is_admin(place)
    # Who does not listen is no admin.
    assert not await prober.is_admin(place)


def test_what_an_error_came_from_counts_too() -> None:
    def wrapped(number: int) -> BaseException:
        try:
            try:
                raise OSError(number, "reason")
            except OSError as error:
                raise ValueError("no answer") from error
        except ValueError as outer:
            return outer

    assert is_exhausted(wrapped(24))
    assert is_exhausted(OSError(23, "Too many open files in system"))
    assert not is_exhausted(wrapped(111))
    assert not is_exhausted(ValueError("no answer"))


async def test_a_flood_of_wrong_answers_does_not_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is always one more that can be received at once.
    async def flood(_sock: socket.socket, _size: int) -> bytes:
        return secrets.token_bytes(64)

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_recv", flood)
    question = b"\x01a\x00\x00\x01\x00\x01"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await by_udp(("127.0.0.1", 9), b"\0" * 12 + question, question, Asked())
            pytest.fail("no answer is one")
