"""Root in a folder of another user, who has put something in the place of our files: nothing else is touched."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kumadp.accesslog.fifo import open_fifo as open_access_log
from kumadp.errors import WorkDirError
from kumadp.host.net.serve import bind_unix
from kumadp.host.private_file import NotOurs, make_folders, make_own_folder, pin_folder, read_private, write_private
from kumadp.host.state_file import read_state
from kumadp.host.work_dir import LOCK_FILE, STATE_FILE, open_work_dir
from kumadp.process.fifo import make_fifo
from kumadp.standalone.control_plane import prepare
from kumadp.standalone.mesh import read_mesh
from tests.support.daemon import Ports, get, run_kumadp, workload, write_mesh
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOBODY = 65534
# Those that a run in standalone mode, or a reload or re-execution of one, opens or replaces.
NAMES = (
    "bootstrap.yaml", "bootstrap.yaml.new", "state.json", "state.json.new", "source.json", "room.check",
    "room.check.new", "h0.base", "h0.base.new", "envoy.out", "dataplane.token", "Corefile", "relay.sock",
    "kuma-readiness-reporter.sock", "crashes",
)  # fmt: skip
NAMES_BELOW = ("clusters.json.new", "listeners.json.new", "clusters.json", "listeners.json")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of another user")


class Victim:
    """A file that has nothing to do with kumadp."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("precious\n")
        path.chmod(0o644)
        self._facts = self._look()

    def _look(self) -> tuple[object, ...]:
        status = self.path.stat()
        return self.path.read_text(), status.st_mode, status.st_uid, status.st_ino, status.st_mtime_ns

    def is_untouched(self) -> bool:
        return self._look() == self._facts


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    target = Victim(tmp_path / "victim")
    yield target
    assert target.is_untouched()


def _symlink(place: Path, victim: Victim) -> None:
    place.symlink_to(victim.path)


def _dangling(place: Path, victim: Victim) -> None:
    place.symlink_to(victim.path.with_name(f"made-{place.name}"))


def _hard_link(place: Path, victim: Victim) -> None:
    place.hardlink_to(victim.path)


def _fifo(place: Path, _victim: Victim) -> None:
    os.mkfifo(place)


def _folder(place: Path, victim: Victim) -> None:
    place.mkdir()
    (place / "file").symlink_to(victim.path)


def _socket(place: Path, _victim: Victim) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(place.parent, os.O_PATH)
        listener.bind(f"/proc/self/fd/{folder}/{place.name}")
        os.close(folder)


KINDS: dict[str, Callable[[Path, Victim], None]] = {
    "symlink": _symlink,
    "dangling": _dangling,
    "hard link": _hard_link,
    "fifo": _fifo,
    "folder": _folder,
    "socket": _socket,
}
planted = pytest.mark.parametrize("kind", KINDS)


@planted
def test_a_file_is_replaced_and_not_followed(tmp_path: Path, victim: Victim, kind: str) -> None:
    for name in ("file", "file.new"):
        place = tmp_path / f"{kind}-{name}"
        place.mkdir()
        KINDS[kind](place / name, victim)
        if kind == "folder":
            with pytest.raises(IsADirectoryError):
                write_private(place / "file", b"ours")
            continue
        write_private(place / "file", b"ours")
        assert (place / "file").read_bytes() == b"ours"
        assert stat.S_IMODE((place / "file").lstat().st_mode) == 0o600
    assert not (tmp_path / "made-file").exists()


@planted
def test_a_file_is_not_read_through_anything(tmp_path: Path, victim: Victim, kind: str) -> None:
    KINDS[kind](tmp_path / "file", victim)
    with pytest.raises(OSError):
        read_private(tmp_path / "file", 100, private=False)
    assert read_state(tmp_path) is None
    (tmp_path / STATE_FILE).unlink(missing_ok=True)
    KINDS[kind](tmp_path / STATE_FILE, victim)
    assert read_state(tmp_path) is None


@planted
def test_a_lock_is_a_file_of_ours_or_none(tmp_path: Path, victim: Victim, kind: str) -> None:
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    KINDS[kind](work / LOCK_FILE, victim)
    with pytest.raises(WorkDirError, match=LOCK_FILE):
        open_work_dir("web", str(work), "", "", {})
    assert not (tmp_path / f"made-{LOCK_FILE}").exists()


@planted
def test_a_socket_takes_the_place(tmp_path: Path, victim: Victim, kind: str) -> None:
    place = tmp_path / "s"
    KINDS[kind](place, victim)
    if kind == "folder":
        with pytest.raises(WorkDirError, match=str(place)):
            bind_unix(place)
        return
    with bind_unix(place):
        assert stat.S_IMODE(place.lstat().st_mode) == 0o600
        assert place.is_socket()


@planted
def test_a_fifo_is_a_fifo_of_ours(tmp_path: Path, victim: Victim, kind: str) -> None:
    for make in (make_fifo, open_access_log):
        place = tmp_path / make.__module__
        place.mkdir()
        KINDS[kind](place / "f", victim)
        if kind == "folder":
            with pytest.raises(OSError):
                make(place / "f")
            continue
        opened = [number for number in make(place / "f") if isinstance(number, int)]
        for number in opened:
            assert stat.S_ISFIFO(os.fstat(number).st_mode)
            os.close(number)


@as_root
def test_what_belongs_to_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    (tmp_path / "file").chmod(0o600)
    os.chown(tmp_path / "file", NOBODY, NOBODY)
    with pytest.raises(NotOurs, match="another user"):
        read_private(tmp_path / "file", 100)
    (tmp_path / "folder").mkdir(mode=0o700)
    os.chown(tmp_path / "folder", NOBODY, NOBODY)
    with pytest.raises(NotOurs, match="another user"):
        make_own_folder(tmp_path / "folder")


def test_a_folder_that_is_a_link_is_not_emptied(tmp_path: Path, victim: Victim) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.json").write_text("{}")
    (tmp_path / "xds").symlink_to(elsewhere)
    folder = write_mesh(tmp_path / "mesh", Ports.take(), 1, 2)
    with pytest.raises(WorkDirError, match="not a folder"):
        prepare(read_mesh(folder, "web"), tmp_path / "xds", None)
    assert [path.name for path in elsewhere.iterdir()] == ["precious.json"]


def test_a_folder_that_is_swapped_is_not_written_to(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    pin_folder(work)
    write_private(work / "file", b"1")
    work.rename(tmp_path / "moved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    work.symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError):
        write_private(work / "file", b"2")
    work.unlink()
    work.mkdir()
    with pytest.raises(NotOurs, match="another folder"):
        write_private(work / "file", b"2")
    assert not [*elsewhere.iterdir(), *work.iterdir()]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_folders_have_their_modes_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    script = (
        f"import os, sys; os.umask({umask}); from pathlib import Path;"
        "from kumadp.host.private_file import make_folders, write_private; folder = Path(sys.argv[1]);"
        "make_folders(folder); write_private(folder / 'file', b'x')"
    )
    folder = tmp_path / "a" / "b" / "c"
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=60)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent.parent, folder.parent, folder)]
    assert modes == [0o755, 0o755, 0o700]
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o600
    make_folders(folder)


@as_root
@pytest.mark.attack
@pytest.mark.process
@planted
def test_a_run_as_root_in_a_folder_of_another_user(tmp_path: Path, victim: Victim, kind: str) -> None:
    """It runs, or exits with 71 and the path if a folder has that name; it never blocks."""
    ports, work = Ports.take(), tmp_path / "work"
    work.mkdir(mode=0o755)
    (work / "xds").mkdir(mode=0o755)
    for name in (*NAMES, *(f"xds/{name}" for name in NAMES_BELOW)):
        KINDS[kind](work / name, victim)
        os.chown(work / name, NOBODY, NOBODY, follow_symlinks=False)
    for folder in (work, work / "xds"):
        os.chown(folder, NOBODY, NOBODY)
    if kind == "hard link":
        # Changing the owner of one name changes that of the file.
        os.chown(victim.path, 0, 0)
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        with run_kumadp(tmp_path, ports, "--standalone", str(mesh), "--name=web") as daemon:
            poll(
                lambda: daemon.process.poll() is not None or get(ports.readiness, "/ready") == (200, "READY"),
                what="READY, or the end",
                deadline=30,
            )
            if kind == "folder":
                assert daemon.wait() == 71
                assert str(work) in daemon.output().splitlines()[-1]
            else:
                assert daemon.process.poll() is None, daemon.output()
                assert "belongs to user 65534" in daemon.output()
                for number, done in ((signal.SIGHUP, "reload (SIGHUP): "), (signal.SIGUSR1, "re-executing (SIGUSR1)")):
                    daemon.process.send_signal(number)
                    poll(lambda done=done: done in daemon.output(), what=done)  # type: ignore[misc]
                daemon.wait_ready()
                daemon.terminate()
                assert daemon.wait() == 0, daemon.output()
        assert "bug in kumadp" not in daemon.output()
        assert "Traceback" not in daemon.output()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("made-")]
