"""Addresses of a host: names, addresses with and without a zone."""

from __future__ import annotations

import socket

import pytest

from kumadp.host.net.host_lookup import numeric_addresses
from tests.support.event_loops import on_both_loops


@on_both_loops
async def test_a_name_has_each_of_its_addresses_once() -> None:
    actual = await numeric_addresses("localhost", 80)
    assert "127.0.0.1" in actual
    assert len(actual) == len(set(actual))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::17%lo", "fe80::17%1"])
@on_both_loops
async def test_an_address_stays_as_it_is_with_its_zone(address: str) -> None:
    assert await numeric_addresses(address, 80) == [address]


@on_both_loops
async def test_a_short_form_of_an_address_is_read_by_the_resolver() -> None:
    assert await numeric_addresses("127.1", 80) == ["127.0.0.1"]


@on_both_loops
async def test_a_zone_that_this_host_does_not_have_is_an_error() -> None:
    with pytest.raises(OSError, match="no interface 'eth9x'"):
        await numeric_addresses("fe80::17%eth9x", 80)


@on_both_loops
async def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(socket.gaierror):
        await numeric_addresses("control-plane.invalid", 80)
