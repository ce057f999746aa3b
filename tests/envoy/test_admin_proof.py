"""What a start waits for of the proof that the admin is private, and what is proved after it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, cast

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin
from kumadp.envoy import admin_proof
from kumadp.envoy.admin import AdminUnreachable
from kumadp.envoy.admin_probe import AdminProber, ProbeAddress
from kumadp.errors import AdminExposed

if TYPE_CHECKING:
    from pathlib import Path

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


async def test_pending_names_are_collected_and_all_counts_for_all() -> None:
    pending = admin_proof.PendingProof()
    waiting = asyncio.ensure_future(pending.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    pending.add({"a"})
    pending.add(["b"])
    await asyncio.wait_for(waiting, 10)
    assert pending.take() == {"a", "b"}
    pending.add({"a"})
    pending.add(None)
    assert pending.take() is None
    pending.add(())
    assert pending.take() == set()


LOCAL = ["127.0.0.1", "192.0.2.1", "2001:db8::1", "fe80::1%eth0", "fe80::2%eth1"]


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("192.0.2.1", {"192.0.2.1"}),
        ("198.51.100.9", {"198.51.100.9"}),
        ("0.0.0.0", {"127.0.0.1", "192.0.2.1"}),
        ("::", {"127.0.0.1", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"}),
        ("fe80::2", {"fe80::2%eth1"}),
    ],
)
def test_the_addresses_at_which_a_bound_socket_is_reached(host: str, reached: set[str]) -> None:
    assert admin_proof._reached_at(host, LOCAL) == reached


class CountingAdmin:
    """Its counter grows by ``steps``, one for each query; the probe of another server does not count."""

    def __init__(self, *steps: int | Exception) -> None:
        self._steps = list(steps)
        self._total = 0

    async def stats(self, _pattern: str) -> dict[str, int]:
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        self._total += step
        return {"http.admin.downstream_rq_total": self._total}


class SilentProber:
    async def is_admin(self, _target: ProbeAddress) -> bool:
        return True


@pytest.mark.parametrize(
    ("steps", "ours"),
    [
        # Three times: a query counts one, a query and a probe two.
        ((1, 1, 2) * 3, True),
        ((1, 1, 1), False),
        ((1, 1, 2, 1, 1, 1), False),
        ((1, AdminUnreachable("x")), True),
    ],
)
async def test_an_admin_is_ours_if_its_counter_counts_the_probes(
    steps: tuple[int | Exception, ...], *, ours: bool
) -> None:
    admin, prober = cast("AdminClient", CountingAdmin(*steps)), cast("AdminProber", SilentProber())
    assert await admin_proof._is_ours(admin, prober, QUICK) is ours


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_unix_sockets_that_others_may_use(tmp_path: Path, mode: int) -> None:
    path, abstract = tmp_path / "x.sock", f"@{tmp_path}"
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as without_path:
        bound.bind(str(path))
        path.chmod(mode)
        without_path.bind(f"\0{tmp_path}")
        for each in (bound, without_path):
            each.listen()
        over_tcp = admin_proof._open_sockets(os.getpid(), TcpAdmin("127.0.0.1", 9901))
        over_unix = admin_proof._open_sockets(os.getpid(), UnixAdmin("/run/admin.sock"))
    assert (str(path) in over_tcp) is (mode == 0o666)
    assert (str(path) in over_unix) is (mode == 0o666)
    # An abstract socket is reached from this host's network, as an admin on loopback is.
    assert abstract not in over_tcp
    assert abstract in over_unix


async def test_the_deadline_of_a_probe_follows_the_admin_s_own_answers() -> None:
    class Admin:
        def __init__(self, seconds: float | None) -> None:
            self._seconds = seconds

        async def get(self, _path: str, timeout: float) -> tuple[int, bytes]:
            assert timeout == admin_proof.LONGEST
            if self._seconds is None:
                raise AdminUnreachable("x")
            await asyncio.sleep(self._seconds)
            return 200, b"{}"

    assert await admin_proof._probe_deadline(cast("AdminClient", Admin(None))) == admin_proof.LONGEST
    quick = await admin_proof._probe_deadline(cast("AdminClient", Admin(0.0)))
    assert admin_proof.SHORTEST <= quick < admin_proof.LONGEST
    assert await admin_proof._probe_deadline(cast("AdminClient", Admin(0.2))) == admin_proof.LONGEST
