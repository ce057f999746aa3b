"""Names of sockets as control planes compute them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kumadp.errors import WorkDirError
from kumadp.host.socket_names import READINESS, check_names, kuma_socket, remove_stale


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("/run/kumadp", "/run/kumadp/kuma-readiness-reporter.sock"),
        ("/" + "a" * 90, "/" + "a" * 90 + "/kuma-r.sock"),
        # Bytes count, not characters.
        ("/" + "ä" * 60, "/" + "ä" * 48 + "\udcc3.sock"),
    ],
)
def test_a_path_is_cut_at_98_bytes(folder: str, path: str) -> None:
    assert kuma_socket(Path(folder), READINESS) == Path(path)


def folder_of(length: int) -> Path:
    return Path("/" + "a" * (length - 1))


def test_a_name_that_is_cut_and_still_its_own_is_right() -> None:
    check_names(Path("/run/kumadp"), "web-1", "default")
    check_names(Path("/run/kumadp"), "a" * 200, "default")
    check_names(folder_of(90), "a" * 200, "default")


@pytest.mark.parametrize("length", [91, 92, 97, 98, 300])
def test_two_sockets_that_would_be_one_are_reported(length: int) -> None:
    with pytest.raises(WorkDirError, match=r"too long.*at most 90 bytes"):
        check_names(folder_of(length), "web-1", "default")


def test_bytes_count() -> None:
    with pytest.raises(WorkDirError):
        check_names(Path("/" + "ä" * 45), "web-1", "default")


def test_stale_sockets_go_and_living_ones_and_what_is_no_socket_stay(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
        dead.bind(str(tmp_path / "kuma-envoy-admin.sock"))
        dead.listen()
        living.bind(str(tmp_path / "kuma-mh-web-default.sock"))
        living.listen(0)
        # A full backlog is no sign of death.
        waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(3)]
        for client in waiting:
            client.connect_ex(str(tmp_path / "kuma-mh-web-default.sock"))
        dead.close()
        os.mkfifo(tmp_path / "kuma-al-web-default.sock")
        (tmp_path / "kuma-x.sock").write_text("a file")
        (tmp_path / "other.sock").touch()
        remove_stale(tmp_path)
        for client in waiting:
            client.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        "kuma-mh-web-default.sock",
        "kuma-al-web-default.sock",
        "kuma-x.sock",
        "other.sock",
    }
