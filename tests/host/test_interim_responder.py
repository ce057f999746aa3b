"""The interim answer to readiness probes while a new program starts: real sockets, and a silent client."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kumadp.daemon.readiness import whole_answer
from kumadp.host.net.serve import bind_tcp, bind_unix
from kumadp.host.reexec import handover, interim_responder
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.reexec.handover import collect
from kumadp.host.reexec.interim_responder import CHECK_VARIABLE, VARIABLE
from tests.support.descriptors import open_descriptors
from tests.support.poll import poll
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE = 20.0
READY = whole_answer("READY")


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """Readiness on TCP and on a Unix socket, and a third one that nobody probes."""
    probed, other = free_ports(2)
    path = tmp_path / "s"
    inherited.register_probed("tcp", "127.0.0.1", probed)
    inherited.register_probed("unix", str(path), 0)
    created = [bind_tcp("127.0.0.1", probed, "test"), bind_unix(path), bind_tcp("127.0.0.1", other, "test")]
    yield created
    interim_responder.stop()
    for sock in created:
        sock.close()


def begin(answer: bytes, **more: str) -> None:
    memfd = handover.write(collect({"other": b"\x00"}, (), ready=answer))
    try:
        interim_responder.start({VARIABLE: str(memfd), **more})
    finally:
        os.close(memfd)


def connect(place: socket.socket) -> socket.socket:
    client = socket.socket(place.family)
    client.settimeout(DEADLINE)
    client.connect(place.getsockname())
    return client


def query(place: socket.socket, path: str = "/ready") -> bytes:
    with connect(place) as client:
        # A head may come in pieces.
        client.sendall(f"GET {path} HTTP/1.1\r\n".encode())
        client.sendall(b"host: x\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b""))


def ended(client: socket.socket) -> bool:
    """Whether the other side has ended it, or does so soon."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def waits(place: socket.socket) -> bool:
    """Whether nobody answers there: who connects is in the backlog, and can be accepted."""
    with connect(place) as sender:
        sender.sendall(b"G")
        try:
            client, _ = place.accept()
        except BlockingIOError:
            return False
        client.close()
        return True


def test_readiness_alone_is_answered_and_a_silent_client_is_in_nobody_s_way(places: list[socket.socket]) -> None:
    tcp, unix, other = places
    begin(READY)
    with connect(tcp) as silent:
        assert query(tcp) == query(unix) == query(tcp, "/ready?x=1") == READY
        assert query(tcp, "/metrics").startswith(b"HTTP/1.1 404 ")
        assert ended(silent)
    assert waits(other)
    with connect(tcp) as client:
        client.sendall(b"GET /ready" + b"x" * 20000)
        assert ended(client)
    assert query(tcp) == READY


def test_a_request_that_was_sent_in_time_is_answered_by_a_late_thread(
    places: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interim_responder, "_HEAD_WITHIN", -1.0)
    with connect(places[0]) as client:
        client.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
        begin(READY)
        assert b"".join(iter(lambda: client.recv(4096), b"")) == READY
    with connect(places[0]) as silent:
        assert ended(silent)


def test_each_place_goes_to_its_server(places: list[socket.socket]) -> None:
    tcp, unix, _ = places
    begin(READY)
    assert query(tcp) == READY
    interim_responder.stop(tcp)
    poll(lambda: waits(tcp), what="the end there")
    assert query(unix) == READY
    interim_responder.stop()
    poll(lambda: waits(unix), what="the end here")


def test_the_state_is_sent_as_it_was(places: list[socket.socket]) -> None:
    begin(whole_answer("NOT_READY"))
    head, _, body = query(places[0]).partition(b"\r\n\r\n")
    assert (head.split(b" ", 2)[1], body) == (b"503", b"NOT_READY")
    assert b"content-type: text/plain" in head
    assert b"x-powered-by: kuma-dp" in head


def test_nobody_answers_where_nothing_is_handed_over_or_it_is_but_tried(places: list[socket.socket]) -> None:
    begin(b"")
    begin(READY, **{CHECK_VARIABLE: "1"})
    interim_responder.start({})
    for number in ("", "x", "99999"):
        interim_responder.start({VARIABLE: number})
    assert waits(places[0])


def test_a_host_without_a_further_thread_only_lets_clients_wait(
    places: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    previous = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        begin(READY)
    assert open_descriptors() <= previous
    assert waits(places[0])
