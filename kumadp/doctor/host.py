"""The machine: cgroup, name servers, process 1, what dead runs left, systemd's units. Paths are given by tests."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from kumadp.daemon.control import control_socket_files
from kumadp.dns.coredns.corefile import HEALTH_NAME
from kumadp.dns.message import REFUSED, code_of, encode_query, is_authoritative, question_of
from kumadp.dns.resolvconf import DNS_PORT, read
from kumadp.dns.resolver.exchange import SentQueries, query_tcp, query_udp
from kumadp.doctor.report import Told, failed, ok, skipped, warning
from kumadp.host.cgroup import OomKills, oom_file
from kumadp.host.environment import find_container_sign
from kumadp.host.facts import memory_limit
from kumadp.host.net.unix_http import connected, owner_of
from kumadp.host.state_file import adoptable, read_state
from kumadp.host.systemd_units import UNITS, shipped
from kumadp.host.work_dir import LOCK_FILE, PREFIX, temporary_folders
from kumadp.process.program_output import output_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.dns.resolvconf import Server

    Exchange = Callable[[Server, bytes, bytes, SentQueries], Awaitable[bytes]]

# Envoy and kumadp in the mesh take about 130 MiB (tests/README.md: what it costs).
_LITTLE = 160 << 20
# glibc asks no more (resolv.conf(5): MAXNS).
_MOST_SERVERS = 3
_SERVER_WITHIN = 2.0
# Nobody's either (RFC 6761), so that a name server needs to ask nobody for it.
_OTHER_NAME = "kumadp.invalid"
_OURS = "kumadp itself answers there"
# What is known to reap what it did not start.
_INITS = {
    *("systemd", "init", "tini", "tini-static", "dumb-init", "docker-init", "catatonit", "runit", "s6-svscan"),
    *("pause", "conmon", "bash", "sh", "supervisord", "openrc-init"),
}
# Where the program is named in a unit; `kumadp install` writes where it is itself.
_PROGRAM = re.compile(r"^(\w+=[-+!:@]*)\S*/kumadp(?=\s|$)")
_SYSTEMCTL_WITHIN = 3.0


async def cgroup(limit: int | None = None, file: Path | None = None) -> list[Told]:
    """How much memory there may be, and whether the kernel has killed for it."""
    most = await asyncio.to_thread(memory_limit) if limit is None else limit
    kills = OomKills(file or await asyncio.to_thread(oom_file)).count() or 0
    told = ok(f"memory limit {most >> 20} MiB" if most else "no memory limit")
    if most and most < _LITTLE:
        told = warning(f"memory limit {most >> 20} MiB", f"Envoy and kumadp need {_LITTLE >> 20} MiB and more")
    if kills:
        told += warning(f"the kernel has killed {kills} times for want of memory here", "raise the memory limit")
    return told


async def resolv_conf(file: Path = Path("/etc/resolv.conf")) -> list[Told]:
    """The name servers of this host, and whether those that the C library asks say anything, whatever it is.

    What kumadp itself answers there, as its address is in resolv.conf or queries are redirected, is no name server's.
    """
    conf = await asyncio.to_thread(read, file)
    notes = [Told("warning", f"{file}: {note}") for note in conf.notes]
    asked = conf.servers[:_MOST_SERVERS]
    by = query_tcp if conf.use_tcp else query_udp
    answers = dict(zip(asked, await asyncio.gather(*(_look(server, by) for server in asked)), strict=True))
    if conf.by_default:
        names = " and ".join(map(_shown, asked))
        if all(answers.values()):
            hint = "names, that of the control plane among them, cannot be resolved"
            told = failed(f"{file} names no server, and at {names} there is none", hint)
        else:
            told = warning(f"{file} names no server: {names} are queried")
        # One of them is enough.
        answers = {server: why for server, why in answers.items() if why == _OURS}
    else:
        told = ok(f"{file}: {', '.join(map(_shown, conf.servers))}")
    told += notes
    if conf.options:
        told += ok(f"options {' '.join(conf.options)}")
    if len(conf.servers) > _MOST_SERVERS:
        told += warning(f"{len(conf.servers) - _MOST_SERVERS} of these servers are never queried by the C library")
    for server, why in answers.items():
        if why == _OURS:
            told += warning(f"{_shown(server)}: {why}", "whether there is a name server too is not known")
        elif why:
            told += warning(f"{_shown(server)} {why}", "a name costs seconds as long as it is in resolv.conf")
    return told


async def _look(server: Server, by: Exchange) -> str:
    """What is wrong with a name server; nothing where it gives an answer, be it that there is no such name."""
    try:
        async with asyncio.timeout(_SERVER_WITHIN):
            answer = await _ask(server, HEALTH_NAME, by)
    except TimeoutError:
        return f"does not answer within {_SERVER_WITHIN:g} s"
    except OSError as error:
        return f"cannot be queried: {os.strerror(error.errno) if error.errno else error}"
    except EOFError:
        return "hangs up"
    if code_of(answer) != REFUSED:
        return ""
    if is_authoritative(answer):
        return _OURS
    # A CoreDNS of kumadp's refuses this name alone; a name server that is not for us refuses every one.
    try:
        async with asyncio.timeout(_SERVER_WITHIN):
            return "" if code_of(await _ask(server, _OTHER_NAME, by)) == REFUSED else _OURS
    except (TimeoutError, OSError, EOFError):
        return _OURS


async def _ask(server: Server, name: str, by: Exchange) -> bytes:
    query = encode_query(name)
    return await by(server, query, question_of(query), SentQueries())


def _shown(server: Server) -> str:
    host, port = server
    return host if port == DNS_PORT else f"[{host}]:{port}"


async def process_1(name: str = "") -> list[Told]:
    """Whether somebody reaps what is left behind."""
    return await asyncio.to_thread(_process_1, name)


def _process_1(name: str) -> list[Told]:
    with contextlib.suppress(psutil.Error):
        name = name or psutil.Process(1).name()
    zombies = 0
    for process in psutil.process_iter(["ppid", "status"]):
        zombies += process.info["ppid"] == 1 and process.info["status"] == psutil.STATUS_ZOMBIE
    if zombies:
        return warning(f"{name} is process 1 and leaves {zombies} zombies", "start the container with an init, as tini")
    if find_container_sign(os.environ) and name not in _INITS:
        return warning(f"{name} is process 1 here", "it may not reap what others leave: use an init, as tini")
    return ok(f"{name} is process 1, no zombies")


async def leftovers(
    environ: Mapping[str, str], work_dirs: tuple[Path, ...] = (), temporary: Path | None = None
) -> list[Told]:
    """What runs that are dead left behind: below /run/kumadp, and in ``work_dirs``."""
    return await asyncio.to_thread(
        _leftovers, environ, work_dirs, (temporary,) if temporary is not None else temporary_folders(environ)
    )


def _leftovers(environ: Mapping[str, str], work_dirs: tuple[Path, ...], temporary: tuple[Path, ...]) -> list[Told]:
    told: list[Told] = []
    for path in sorted(path for folder in temporary for path in folder.glob(PREFIX + "*")):
        if _is_dead(path / LOCK_FILE):
            told += warning(f"{path} is left of a dead run", "the next `kumadp run` removes it")
    for path in control_socket_files(environ):
        try:
            with connected(path, owner_of(path), 0.5):
                continue
        except ConnectionRefusedError:
            told += warning(f"{path}: nobody listens there any more", f"a killed kumadp left it: rm {path}")
        except OSError:
            continue
    for folder in dict.fromkeys((*sorted(Path("/run/kumadp").glob("*/")), *work_dirs)):
        state = read_state(folder) if _is_dead(folder / LOCK_FILE) else None
        if state is not None and (living := adoptable(state)):
            names = ", ".join(f"{child.name} (pid {child.pid})" for child in living)
            told += warning(f"{names} of a dead kumadp in {folder}", "kumadp sweep --work-dir DIR, or run kumadp again")
    return told or ok("nothing is left of dead runs")


def _is_dead(lock: Path) -> bool:
    """Whether there is a lock that nobody holds."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


async def systemd(
    instance: str = "",
    booted: Path = Path("/run/systemd/system"),
    folder: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Told]:
    """Whether the unit that is installed is the one that came with this kumadp, and what systemd has loaded.

    ``instance`` is of the template's the one that may be loaded; ``folder`` has what was shipped, for tests.
    """
    if not await asyncio.to_thread(booted.is_dir):
        return skipped("systemd is not the init here")
    told: list[Told] = []
    for unit in UNITS:
        told += await _unit(unit, instance or "doctor", folder, environ)
    return told or skipped(f"neither {' nor '.join(UNITS)} is installed")


async def _unit(unit: str, instance: str, folder: Path | None, environ: Mapping[str, str]) -> list[Told]:
    # A template is not loaded by itself.
    name = unit.replace("@.", f"@{instance}.")
    try:
        answer = await output_of(
            Path(shutil.which("systemctl", path=environ.get("PATH")) or "systemctl"),
            *("show", "--property=FragmentPath,NeedDaemonReload,DropInPaths", name),
            environment=dict(environ),
            deadline=_SYSTEMCTL_WITHIN,
        )
    except (OSError, TimeoutError) as error:
        return warning(f"{unit}: systemctl does not answer: {str(error) or 'not in time'}")
    shows = dict(line.partition("=")[::2] for line in answer.splitlines() if "=" in line)
    installed = shows.get("FragmentPath", "")
    if not installed:
        return []
    told: list[Told] = []
    if shows.get("NeedDaemonReload") == "yes":
        told += warning(f"{unit} has changed on disk", "systemctl daemon-reload")
    if await asyncio.to_thread(_differs, Path(installed), unit, folder):
        hint = "install it anew; keep changes of yours with `systemctl edit`"
        told += warning(f"{installed} is not the one that comes with this kumadp", hint)
    return told or ok(f"{unit} is the one that was shipped")


def _differs(installed: Path, unit: str, folder: Path | None) -> bool:
    """Whether a unit says something else than the shipped one: comments, and where the program is, do not count."""

    def said(text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        return [_PROGRAM.sub(r"\1kumadp", line) for line in lines if line and line[0] not in "#;"]

    try:
        reference = (folder / unit).read_bytes() if folder is not None else shipped("systemd", unit)
        return said(installed.read_text(errors="replace")) != said(reference.decode())
    except OSError:
        return True
