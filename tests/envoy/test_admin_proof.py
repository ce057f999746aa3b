"""What a start waits for of the proof that the admin is private, and what goes on after it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.envoy import admin_proof as proof
from kumadp.envoy.admin_probe import AdminProber, ProbeAddress
from kumadp.errors import AdminExposed

if TYPE_CHECKING:
    from kumadp.envoy.admin import AdminClient

QUICK, SLOW = ProbeAddress("192.0.2.1", 80), ProbeAddress("192.0.2.1", 81)


class Admin:
    address = TcpAdmin("127.0.0.1", 9901)


class Places:
    """One that answers at once, and one when ``answer`` is set: whether an admin does is in ``shown``."""

    def __init__(self, patch: pytest.MonkeyPatch, *, is_read: bool = True) -> None:
        self.answer = asyncio.Event()
        self.shown: set[ProbeAddress] = set()
        self.rest: list[asyncio.Future[None]] = []

        async def read(*_: object) -> bool:
            return is_read

        async def patience(_: object) -> float:
            return 0.01

        async def is_ours(*_: object) -> bool:
            return True

        async def is_admin(_: AdminProber, place: ProbeAddress) -> bool:
            if place == SLOW:
                await self.answer.wait()
            return place in self.shown

        patch.setattr(proof, "_listening", lambda *_: {("192.0.2.1", 80), ("192.0.2.1", 81)})
        patch.setattr(proof, "_places", lambda *_: [QUICK, SLOW])
        patch.setattr(proof, "_prove_configuration", read)
        patch.setattr(proof, "_patience", patience)
        patch.setattr(proof, "_is_ours", is_ours)
        patch.setattr(AdminProber, "is_admin", is_admin)

    async def prove(self) -> None:
        await proof.prove_private(1, cast("AdminClient", Admin()), later=self.rest.append)


@pytest.mark.parametrize("shown", [True, False])
async def test_a_silent_place_holds_no_start_up_and_is_judged_when_it_answers(
    monkeypatch: pytest.MonkeyPatch, *, shown: bool
) -> None:
    places = Places(monkeypatch)
    places.shown = {SLOW} if shown else set()
    await asyncio.wait_for(places.prove(), 10)
    (rest,) = places.rest
    assert not rest.done()
    places.answer.set()
    if shown:
        with pytest.raises(AdminExposed, match=r"192\.0\.2\.1:81"):
            await rest
    else:
        await rest


async def test_an_admin_that_answers_at_once_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(monkeypatch)
    places.shown = {QUICK}
    with pytest.raises(AdminExposed, match=r"192\.0\.2\.1:80"):
        await asyncio.wait_for(places.prove(), 10)
    places.rest[0].cancel()


async def test_where_the_configuration_cannot_be_read_a_start_waits_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(monkeypatch, is_read=False)
    proving = asyncio.ensure_future(places.prove())
    await asyncio.wait({proving}, timeout=0.1)
    assert not proving.done()
    places.answer.set()
    await asyncio.wait_for(proving, 10)
    assert places.rest == []
