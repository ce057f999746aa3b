"""One request over a socket that is not trusted: its owner is verified, time and size of the response are limited."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from kumadp.host.net import unix_http
from kumadp.host.net.unix_http import UntrustedSocket, connected, exchange, owner_of, peer_of, user_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\n"


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def answered(*parts: bytes, close: bool = True, head_only: bool = False, seconds: float = 10.0) -> tuple[int, bytes]:
    """What `exchange` returns if the server sends ``parts``."""
    client, server = socket.socketpair()

    def serve() -> None:
        server.recv(65536)
        with contextlib.suppress(OSError):
            for part in parts:
                server.sendall(part)
                time.sleep(0.005)
        if close:
            server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return exchange(client, "GET", "/x", time.monotonic() + seconds, head_only=head_only)
    finally:
        client.close()
        thread.join()
        server.close()


def test_an_own_socket_is_trusted(folder: Path) -> None:
    path = folder / "s"
    with listening(path):
        assert owner_of(path) == os.geteuid()
        with connected(path, os.geteuid(), 10.0) as (sock, peer):
            assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
            assert peer_of(sock) == peer


def test_sockets_that_others_could_replace_are_not_trusted(folder: Path) -> None:
    path = folder / "s"
    with listening(path):
        folder.chmod(0o777)
        with pytest.raises(UntrustedSocket, match="can be written by others"):
            owner_of(path)
        folder.chmod(0o700)
        (folder / "link").symlink_to(path)
        with pytest.raises(UntrustedSocket, match="link is not a socket"):
            owner_of(folder / "link")
        with pytest.raises(UntrustedSocket, match="belongs to"), connected(path, os.geteuid() + 1, 1.0):
            pass
    with pytest.raises(FileNotFoundError):
        owner_of(folder / "none")


def test_a_folder_that_is_a_link_is_not_followed(folder: Path) -> None:
    (folder / "real").mkdir(mode=0o700)
    (folder / "link").symlink_to("real")
    with listening(folder / "real" / "s"), pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        owner_of(folder / "link" / "s")


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ((OK + b"content-length: 2\r\n\r\nabc",), b"ab"),
        ((OK + b"\r\nuntil", b" the end"), b"until the end"),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",), b"abcd"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK, b"content-length: 1\r\n", b"\r\nx"), b"x"),
        ((b"HT", b"TP/1.0 200\r\ncontent-length:0\r\n\r\n"), b""),
    ],
)
def test_bodies(parts: tuple[bytes, ...], body: bytes) -> None:
    assert answered(*parts) == (200, body)


def test_a_body_that_is_not_needed_is_not_read() -> None:
    assert answered(OK + b"content-length: 9\r\n\r\n", close=False, head_only=True) == (200, b"")
    assert answered(b"HTTP/1.1 204 No Content\r\n\r\n", close=False) == (204, b"")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((), "closed without an answer"),
        ((OK,), "ends early"),
        ((OK + b"content-length: 3\r\n\r\nab",), "ends early"),
        ((b"SSH-2.0-x\r\n",), "not HTTP"),
        ((b"HTTP/1.1 20 OK\r\n\r\n",), "not HTTP"),
        ((OK + b"x: " + b"y" * (20 << 10),), "not HTTP"),
        ((b"HTTP/1.1 100 Continue\r\nx: " + b"y" * 9000 + b"\r\n\r\n",) * 3, "not HTTP"),
        ((OK + b"content-length: 9999999\r\n\r\n",), "larger than 2 MiB"),
        ((OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",), "not HTTP"),
        ((OK + b"transfer-encoding: chunked\r\n\r\n5\r\nab",), "ends early"),
    ],
)
def test_other_responses_are_errors(parts: tuple[bytes, ...], reason: str) -> None:
    with pytest.raises(OSError, match=reason):
        answered(*parts)


def test_an_endless_body_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_http, "LARGEST_BODY", 1 << 16)
    with pytest.raises(OSError, match="larger than"):
        answered(OK + b"\r\n", *[b"x" * 8192] * 20)


def test_a_response_that_arrives_too_slowly_times_out() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        answered(OK, *[b"x: y\r\n"] * 200, seconds=0.2)
    assert time.monotonic() - begun < 5


def test_users_are_named() -> None:
    assert user_name(0) == "user root"
    assert user_name(4_000_000_000) == "uid 4000000000"
