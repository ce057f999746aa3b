"""A process without descriptors knows nothing of others: nobody is taken for dead, for private, or for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from kumadp.controlplane.bootstrap_http import fetch_bootstrap
from kumadp.controlplane.token import read_token
from kumadp.controlplane.trust import read_trust
from kumadp.dns.coredns import health_check
from kumadp.dns.resolver.exchange import SentQueries, query_udp
from kumadp.envoy.admin_probe import AdminProber, ProbeAddress
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable
from kumadp.host.descriptors import is_exhausted
from kumadp.settings.model import Settings
from kumadp.standalone.health import _connects
from tests.support.hostile_clients import no_descriptors_left

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.controlplane.trust import Trust


async def test_an_admin_that_cannot_be_queried_is_not_private() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = ProbeAddress("127.0.0.1", server.getsockname()[1])
        prober = AdminProber("127.0.0.1:9901", 5.0)
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
            await query_udp(("127.0.0.1", 9), b"\0" * 12 + question, question, SentQueries())
            pytest.fail("no answer is one")


def test_a_token_and_a_ca_that_cannot_be_opened_now_are_not_wrong(tmp_path: Path) -> None:
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("a.b.c")
    ca.write_text("no certificate")
    with no_descriptors_left():
        with pytest.raises(OSError, match="Too many open files"):
            read_token(token)
        with pytest.raises(OSError, match="Too many open files"):
            read_trust(Settings(ca_cert_file=str(ca)))
    with pytest.raises(ControlPlaneRefused):
        read_token(token)
    with pytest.raises(ControlPlaneRefused):
        read_trust(Settings(ca_cert_file=str(ca)))
    with pytest.raises(ControlPlaneRefused):
        read_token(tmp_path / "none")


async def test_a_bootstrap_is_requested_again_where_the_token_cannot_be_opened_now() -> None:
    reasons: list[ControlPlaneUnavailable] = []

    async def request() -> tuple[bytes, Trust]:
        raise OSError(24, "Too many open files")

    with pytest.raises(ControlPlaneUnavailable, match="Too many open files"):
        await fetch_bootstrap(
            ("http://127.0.0.1:9",), request, backoff=0.01, max_duration=0.1, on_failure=reasons.append
        )
    assert reasons


async def test_a_failed_query_is_not_taken_for_silence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await _connects("127.0.0.1", port, 5.0) is True
        with no_descriptors_left():
            assert await _connects("127.0.0.1", port, 5.0) is None
            with pytest.raises(OSError, match="Too many open files"):
                await health_check.missing_transports(port, deadline=5.0)
    assert await _connects("127.0.0.1", port, 5.0) is False
    assert await health_check.missing_transports(port, deadline=5.0) == "UDP and TCP"
