"""Which clients may have names looked up elsewhere."""

from __future__ import annotations

import pytest

from kumadp.dns.resolver import access
from kumadp.dns.resolver.access import Access


@pytest.fixture(autouse=True)
def _addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "local_addresses", lambda: frozenset({"192.0.2.1", "fe80::1"}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "192.0.2.1", "::ffff:192.0.2.1", "fe80::1%eth0"])
def test_this_host_is_allowed(host: str) -> None:
    assert Access().allows(host)


@pytest.mark.parametrize("host", ["192.0.2.2", "::ffff:192.0.2.2", "2001:db8::1"])
def test_strangers_are_not_allowed_unless_their_network_is_configured(host: str) -> None:
    assert not Access().allows(host)
    assert Access(("192.0.2.0/24", "2001:db8::/32")).allows(host)


def test_an_address_that_the_host_has_just_got(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Access()
    assert not here.allows("192.0.2.9")
    monkeypatch.setattr(access, "local_addresses", lambda: frozenset({"192.0.2.9"}))
    monkeypatch.setattr(access, "_LOOK_AGAIN", 0.0)
    assert here.allows("192.0.2.9")
