"""A socket that connects to the application from the address that transparent proxying does not redirect."""

from __future__ import annotations

import socket
from contextlib import closing

from kumadp.host.net.application_socket import SOURCE_ADDRESSES, application_socket


def source_of(sourced: bool) -> str:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        closing(application_socket(socket.AF_INET, sourced=sourced)) as client,
    ):
        assert not client.getblocking()
        client.settimeout(10)
        client.connect(server.getsockname())
        connection, peer = server.accept()
        connection.close()
        return str(peer[0])


def test_it_connects_from_the_source_address_only_if_requested() -> None:
    assert source_of(sourced=True) == SOURCE_ADDRESSES[socket.AF_INET] == "127.0.0.6"
    assert source_of(sourced=False) == "127.0.0.1"


def test_a_host_without_the_source_address_connects_from_any() -> None:
    # ::6 exists only if IPv6 is redirected.
    with closing(application_socket(socket.AF_INET6, sourced=True)) as client:
        assert client.getsockname()[0] in {"::", SOURCE_ADDRESSES[socket.AF_INET6]}
