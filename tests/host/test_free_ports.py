"""Reserved ports: free for TCP and UDP, given to nobody else, and bindable by the server that they are for."""

from __future__ import annotations

import socket

import pytest

from kumadp.errors import PortsTaken
from kumadp.host.net import free_ports
from kumadp.host.net.free_ports import FreePorts


def test_ports_differ_and_can_be_bound_by_number() -> None:
    reserved = FreePorts()
    ports = {reserved.take("--a"), reserved.take("--b", udp=True), reserved.take("--c")}
    assert len(ports) == 3
    for port in ports:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("0.0.0.0", port))
            server.listen()
    reserved.close()


def test_they_are_released() -> None:
    reserved = FreePorts()
    port = reserved.take("--a")
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("127.0.0.1", port))
    reserved.close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_a_host_without_a_free_port_is_an_error_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(socket.socket):
        def bind(self, _address: object) -> None:
            raise OSError(98, "Address already in use")

    monkeypatch.setattr(free_ports.socket, "socket", Full)  # type: ignore[attr-defined]
    with pytest.raises(PortsTaken, match="--dns-port: no free port was found"):
        FreePorts().take("--dns-port")
