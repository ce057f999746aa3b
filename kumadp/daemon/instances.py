"""The data planes that run on this host: those of this user, for root those of the host's services too.

Their control sockets are looked for in the folders where they go by default, and for processes that were started with
other folders, among the listening sockets that the kernel lists (/proc/net/unix). A socket is believed only where its
folder, its file and its process are of the right user (`kumadp.host.net.unix_http`). Nothing is sent here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.errors import on_one_line
from kumadp.host.net import socket_paths
from kumadp.host.net.socket_paths import SUFFIX, folders
from kumadp.host.net.unix_http import UntrustedSocket, connected, owner_of, user_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PROC = Path("/proc")
# What `kumadp.host.process_name` calls it, and what it is called where it cannot: by its script, or by its interpreter.
_NAMES = frozenset({"kuma-dp", "kumadp"})
_INTERPRETER = "python"
# SO_ACCEPTCON, in the column Flags of /proc/net/unix (Linux, net/unix/af_unix.c).
_LISTENS = "00010000"
_CONNECT_WITHIN = 0.5
# A host where other users make sockets by the thousand must not hold a command up (seconds, sockets).
_LOOK_FOR = 5.0
_MOST = 1024
_TOLD = 5


class Running(Struct, frozen=True):
    """A data plane that may be queried: its control socket, the user whose it is, and its process.

    ``listed``: its socket is in none of the folders where this user's go by default.
    """

    path: Path
    uid: int
    pid: int
    listed: bool = False

    @property
    def name(self) -> str:
        """Its name, by its socket's file name, which shortens long names."""
        return on_one_line(self.path.stem)


class Search(Struct):
    """The result: ``running`` may be queried, ``others`` and ``ignored`` are reported and not queried."""

    running: list[Running] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Data planes of other users, in words; root alone sees them."""
    ignored: list[str] = field(default_factory=list)
    """Sockets where ours would be that are another user's, in words."""

    def nearest(self, name: str = "") -> list[Running]:
        """Those (of that name) in the folders where control sockets go by default; where there are none, all.

        If no data plane has the name, it may be that of a unit: ``web`` of ``kumadp@web``, in its runtime directory.
        """
        matching = [plane for plane in self.running if not name or plane.path.name == socket_paths.socket_name(name)]
        if not matching:
            matching = [plane for plane in self.running if plane.path.parent == socket_paths.RUN / name]
        return [plane for plane in matching if not plane.listed] or matching

    def notes(self) -> str:
        """What else there is, to follow a sentence; empty where there is nothing."""
        parts = []
        if self.others:
            parts.append(f"run by other users, who can query them: {_some(self.others)}")
        if self.ignored:
            parts.append(f"ignored: {_some(self.ignored)}")
        return "".join(f"; {part}" for part in parts)


def find(environ: Mapping[str, str]) -> Search:
    """Return the data planes on this host that this user may see. May block, for `_LOOK_FOR` seconds.

    Within a unit of systemd that has one in its own runtime directory, that one alone.
    """
    search = _Searching()
    if runtime := environ.get("RUNTIME_DIRECTORY"):
        search.take(Path(runtime.split(":")[0]), named=True)
        if search.found.running:
            return search.found
    for folder in folders(environ):
        search.take(folder)
    # A unit of systemd has its own folder there.
    search.take(socket_paths.RUN, "*/*" + SUFFIX)
    search.take_listed()
    return search.found


def find_control_sockets(environ: Mapping[str, str]) -> list[Path]:
    """The control sockets of `find`'s data planes."""
    return [one.path for one in find(environ).running]


class _Searching:
    def __init__(self) -> None:
        self.found = Search()
        self._us = os.geteuid()
        self._seen: set[tuple[int, int]] = set()
        self._until = time.monotonic() + _LOOK_FOR

    def take(self, folder: Path, pattern: str = "*" + SUFFIX, *, named: bool = False) -> None:
        """Those in a folder that live and may be believed; ``named``: the caller's environment names it."""
        try:
            owner = folder.lstat().st_uid
            if owner not in {0, self._us} and not self._is_trusted(folder, named=named):
                self.found.ignored.append(f"{_shown(folder)} belongs to {user_name(owner)}")
                return
            paths = sorted(folder.glob(pattern))
        except OSError:
            return
        for path in paths[:_MOST]:
            try:
                uid = self._new(path)
                if uid is None or time.monotonic() > self._until:
                    continue
                if uid != self._us and not self._is_trusted(path, named=named):
                    self.found.ignored.append(f"{_shown(path)} belongs to {user_name(uid)}")
                    continue
                with connected(path, uid, _CONNECT_WITHIN) as (_, peer):
                    self.found.running.append(Running(path, uid, peer.pid))
            except UntrustedSocket as error:
                self.found.ignored.append(str(error))
            except OSError:
                continue

    def _is_trusted(self, path: Path, *, named: bool) -> bool:
        """Whether root may take what is another user's for what it seems."""
        return self._us == 0 and (named or _is_of_host(path))

    def take_listed(self) -> None:
        """Those of processes that are a kumadp, wherever their sockets are."""
        processes = dict(_processes(self._us))
        foreign: list[tuple[Path, int]] = []
        for path in itertools.islice(_listed(processes), _MOST):
            with contextlib.suppress(OSError):
                uid = self._new(path)
                if uid is not None and uid != self._us:
                    foreign.append((path, uid))
                elif uid is not None and (pid := self._pid_of(path, uid)) in processes:
                    self.found.running.append(Running(path, uid, pid, listed=True))
        # Last: they may have been made to be slow.
        for path, uid in foreign if self._us == 0 else ():
            with contextlib.suppress(OSError):
                if self._pid_of(path, uid) in processes:
                    self.found.others.append(f"{on_one_line(path.stem)} of {user_name(uid)}")

    def _pid_of(self, path: Path, uid: int) -> int:
        if time.monotonic() > self._until:
            return 0
        with connected(path, uid, _CONNECT_WITHIN) as (_, peer):
            return peer.pid

    def _new(self, path: Path) -> int | None:
        """Whose socket it is; None where it was seen before. Raises OSError."""
        file = path.lstat()
        if (file.st_dev, file.st_ino) in self._seen:
            return None
        self._seen.add((file.st_dev, file.st_ino))
        return owner_of(path)


def _shown(path: Path) -> str:
    return on_one_line(str(path))


def _some(texts: list[str]) -> str:
    """The first of them: other users can make any number."""
    more = len(texts) - _TOLD
    return ", ".join(texts[:_TOLD]) + (f" and {more} more" if more > 0 else "")


def _is_of_host(path: Path) -> bool:
    """Whether it is in /run/kumadp, which the service manager makes: nobody else can, in root's own folder."""
    if socket_paths.RUN not in (path, *path.parents):
        return False
    above, run = socket_paths.RUN.parent.lstat(), socket_paths.RUN.lstat()
    closed = not (stat.S_IMODE(above.st_mode) | stat.S_IMODE(run.st_mode)) & 0o022
    return above.st_uid == 0 and closed and stat.S_ISDIR(run.st_mode)


def _processes(uid: int) -> Iterator[tuple[int, Path]]:
    """The processes of this user, for root of all, that are a kumadp: pid and folder in /proc."""
    with contextlib.suppress(OSError), os.scandir(PROC) as entries:
        for entry in entries:
            if not entry.name.isdecimal():
                continue
            place = PROC / entry.name
            with contextlib.suppress(OSError):
                if (uid == 0 or entry.stat().st_uid == uid) and _is_kumadp(place):
                    yield int(entry.name), place


def _is_kumadp(place: Path) -> bool:
    name = (place / "comm").read_bytes().decode(errors="replace").strip()
    if name in _NAMES:
        return True
    if not name.startswith(_INTERPRETER):
        return False
    words = [os.fsdecode(word) for word in (place / "cmdline").read_bytes().split(b"\0")]
    scripts = {word.rpartition("/")[2] for word in words[1:3]}
    return bool(scripts & _NAMES) or ("-m", "kumadp") in itertools.pairwise(words)


def _listed(processes: Mapping[int, Path]) -> Iterator[Path]:
    """The listening control sockets in the network namespaces of these processes, by path."""
    namespaces: set[int] = set()
    for place in processes.values():
        with contextlib.suppress(OSError):
            namespace = (place / "ns/net").stat().st_ino
            if namespace in namespaces:
                continue
            lines = (place / "net/unix").read_bytes().splitlines()
            namespaces.add(namespace)
            yield from sorted(_paths(lines))


def _paths(lines: Iterable[bytes]) -> Iterator[Path]:
    for line in lines:
        # Num, RefCount, Protocol, Flags, Type, St, Inode, Path (proc(5)); a path may have spaces in it.
        columns = os.fsdecode(line).split(None, 7)
        if len(columns) == 8 and columns[3] == _LISTENS and columns[7].startswith("/") and columns[7].endswith(SUFFIX):
            yield Path(columns[7])
