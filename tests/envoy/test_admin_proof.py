"""What a start waits for of the proof that the admin is private, and what is proved after it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.envoy import admin_proof
from kumadp.envoy.admin_probe import AdminProber, ProbeAddress
from kumadp.errors import AdminExposed

if TYPE_CHECKING:
    from kumadp.envoy.admin import AdminClient

QUICK, SLOW = ProbeAddress("192.0.2.1", 80), ProbeAddress("192.0.2.1", 81)


class Admin:
    address = TcpAdmin("127.0.0.1", 9901)


class ProbedAddresses:
    """One that answers at once, and one when ``answer`` is set; those in ``admins`` answer as an admin."""

    def __init__(self, patch: pytest.MonkeyPatch, *, is_read: bool = True) -> None:
        self.answer = asyncio.Event()
        self.admins: set[ProbeAddress] = set()
        self.rest: list[asyncio.Future[None]] = []

        async def read(*_: object) -> bool:
            return is_read

        async def deadline(_: object) -> float:
            return 0.01

        async def is_ours(*_: object) -> bool:
            return True

        async def is_admin(_: AdminProber, target: ProbeAddress) -> bool:
            if target == SLOW:
                await self.answer.wait()
            return target in self.admins

        patch.setattr(admin_proof, "_listening", lambda *_: {("192.0.2.1", 80), ("192.0.2.1", 81)})
        patch.setattr(admin_proof, "_probe_addresses", lambda *_: [QUICK, SLOW])
        patch.setattr(admin_proof, "_prove_configuration", read)
        patch.setattr(admin_proof, "_probe_deadline", deadline)
        patch.setattr(admin_proof, "_is_ours", is_ours)
        patch.setattr(AdminProber, "is_admin", is_admin)

    async def prove(self) -> None:
        await admin_proof.prove_private(1, cast("AdminClient", Admin()), later=self.rest.append)


@pytest.mark.parametrize("exposed", [True, False])
async def test_a_silent_address_delays_no_start_and_is_judged_when_it_answers(
    monkeypatch: pytest.MonkeyPatch, *, exposed: bool
) -> None:
    probed = ProbedAddresses(monkeypatch)
    probed.admins = {SLOW} if exposed else set()
    await asyncio.wait_for(probed.prove(), 10)
    (rest,) = probed.rest
    assert not rest.done()
    probed.answer.set()
    if exposed:
        with pytest.raises(AdminExposed, match=r"192\.0\.2\.1:81"):
            await rest
    else:
        await rest


async def test_an_admin_that_answers_at_once_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    probed = ProbedAddresses(monkeypatch)
    probed.admins = {QUICK}
    with pytest.raises(AdminExposed, match=r"192\.0\.2\.1:80"):
        await asyncio.wait_for(probed.prove(), 10)
    probed.rest[0].cancel()


async def test_a_start_waits_for_all_if_the_configuration_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    probed = ProbedAddresses(monkeypatch, is_read=False)
    proving = asyncio.ensure_future(probed.prove())
    await asyncio.wait({proving}, timeout=0.1)
    assert not proving.done()
    probed.answer.set()
    await asyncio.wait_for(proving, 10)
    assert probed.rest == []
