"""Checks of the host: cgroup, name servers, process 1, leftovers of dead runs, systemd units."""

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

from kumadp.dns.coredns.corefile import HEALTH_NAME
from kumadp.dns.message import REFUSED, code_of, encode_query, is_authoritative, question_of
from kumadp.dns.resolvconf import DNS_PORT, read
from kumadp.dns.resolver.exchange import SentQueries, query_tcp, query_udp
from kumadp.doctor.report import CheckResult, failed, ok, skipped, warning
from kumadp.host.cgroup import OomKills, oom_file
from kumadp.host.environment import find_container_sign
from kumadp.host.facts import memory_limit
from kumadp.host.net.socket_paths import control_socket_files
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
_MIN_MEMORY = 160 << 20
# glibc queries no more (resolv.conf(5): MAXNS).
_MAX_SERVERS = 3
_SERVER_TIMEOUT = 2.0
# Reserved as well (RFC 6761), so that a name server needs no other one to answer.
_OTHER_NAME = "kumadp.invalid"
_OURS = "kumadp itself answers there"
# Known to reap processes that they did not start.
_INITS = {
    *("systemd", "init", "tini", "tini-static", "dumb-init", "docker-init", "catatonit", "runit", "s6-svscan"),
    *("pause", "conmon", "bash", "sh", "supervisord", "openrc-init"),
}
# The program in a unit; `kumadp install` writes its own path there.
_PROGRAM = re.compile(r"^(\w+=[-+!:@]*)\S*/kumadp(?=\s|$)")
_SYSTEMCTL_TIMEOUT = 3.0


async def cgroup(limit: int | None = None, file: Path | None = None) -> list[CheckResult]:
    """Check the memory limit, and whether the kernel has killed processes because of it.

    ``limit`` in bytes and ``file`` replace those of this process, for tests.
    """
    maximum = await asyncio.to_thread(memory_limit) if limit is None else limit
    kills = OomKills(file or await asyncio.to_thread(oom_file)).count() or 0
    results = ok(f"memory limit {maximum >> 20} MiB" if maximum else "no memory limit")
    if maximum and maximum < _MIN_MEMORY:
        hint = f"Envoy and kumadp need at least {_MIN_MEMORY >> 20} MiB"
        results = warning(f"memory limit {maximum >> 20} MiB", hint)
    if kills:
        results += warning(
            f"the kernel has killed processes here {kills} times: out of memory", "raise the memory limit"
        )
    return results


async def resolv_conf(file: Path = Path("/etc/resolv.conf")) -> list[CheckResult]:
    """Check the name servers of this host: whether those that the C library queries answer, whatever the answer is.

    An answer of kumadp itself, because its address is in resolv.conf or queries are redirected, does not count.
    """
    conf = await asyncio.to_thread(read, file)
    notes = [CheckResult("warning", f"{file}: {note}") for note in conf.notes]
    queried = conf.servers[:_MAX_SERVERS]
    exchange = query_tcp if conf.use_tcp else query_udp
    faults = dict(zip(queried, await asyncio.gather(*(_fault(server, exchange) for server in queried)), strict=True))
    if conf.by_default:
        addresses = " and ".join(map(_shown, queried))
        if all(faults.values()):
            hint = "names cannot be resolved, including that of the control plane"
            results = failed(f"{file} has no name server, and none answers at {addresses}", hint)
        else:
            results = warning(f"{file} has no name server: {addresses} are queried")
        # One of them is enough.
        faults = {server: fault for server, fault in faults.items() if fault == _OURS}
    else:
        results = ok(f"{file}: {', '.join(map(_shown, conf.servers))}")
    results += notes
    if conf.options:
        results += ok(f"options {' '.join(conf.options)}")
    if len(conf.servers) > _MAX_SERVERS:
        results += warning(f"{len(conf.servers) - _MAX_SERVERS} of these servers are never queried by the C library")
    for server, fault in faults.items():
        if fault == _OURS:
            results += warning(f"{_shown(server)}: {fault}", "whether there is a name server as well is unknown")
        elif fault:
            results += warning(f"{_shown(server)} {fault}", "while it is in resolv.conf, lookups take seconds longer")
    return results


async def _fault(server: Server, exchange: Exchange) -> str:
    """Return what is wrong with a name server; empty if it gives any answer, also that there is no such name."""
    try:
        async with asyncio.timeout(_SERVER_TIMEOUT):
            answer = await _query(server, HEALTH_NAME, exchange)
    except TimeoutError:
        return f"does not answer within {_SERVER_TIMEOUT:g} s"
    except OSError as error:
        return f"cannot be queried: {os.strerror(error.errno) if error.errno else error}"
    except EOFError:
        return "closes the connection"
    if code_of(answer) != REFUSED:
        return ""
    if is_authoritative(answer):
        return _OURS
    # A CoreDNS of kumadp refuses only this name; a name server that rejects us refuses every name.
    try:
        async with asyncio.timeout(_SERVER_TIMEOUT):
            return "" if code_of(await _query(server, _OTHER_NAME, exchange)) == REFUSED else _OURS
    except (TimeoutError, OSError, EOFError):
        return _OURS


async def _query(server: Server, name: str, exchange: Exchange) -> bytes:
    query = encode_query(name)
    return await exchange(server, query, question_of(query), SentQueries())


def _shown(server: Server) -> str:
    host, port = server
    return host if port == DNS_PORT else f"[{host}]:{port}"


async def process_1(name: str = "") -> list[CheckResult]:
    """Check that process 1 reaps orphaned processes. ``name`` replaces its name, for tests."""
    return await asyncio.to_thread(_process_1, name)


def _process_1(name: str) -> list[CheckResult]:
    with contextlib.suppress(psutil.Error):
        name = name or psutil.Process(1).name()
    zombies = 0
    for process in psutil.process_iter(["ppid", "status"]):
        zombies += process.info["ppid"] == 1 and process.info["status"] == psutil.STATUS_ZOMBIE
    if zombies:
        return warning(
            f"{name} is process 1 and leaves {zombies} zombies", "start the container with an init such as tini"
        )
    if find_container_sign(os.environ) and name not in _INITS:
        return warning(f"{name} is process 1 here", "it may not reap orphaned processes: use an init such as tini")
    return ok(f"{name} is process 1, no zombies")


async def leftovers(
    environ: Mapping[str, str], work_dirs: tuple[Path, ...] = (), temporary: Path | None = None
) -> list[CheckResult]:
    """Check for files and processes that dead runs left in ``work_dirs`` and below /run/kumadp."""
    return await asyncio.to_thread(
        _leftovers, environ, work_dirs, (temporary,) if temporary is not None else temporary_folders(environ)
    )


def _leftovers(
    environ: Mapping[str, str], work_dirs: tuple[Path, ...], temporary: tuple[Path, ...]
) -> list[CheckResult]:
    results: list[CheckResult] = []
    for path in sorted(path for folder in temporary for path in folder.glob(PREFIX + "*")):
        if _is_dead(path / LOCK_FILE):
            results += warning(f"{path} was left by a dead run", "the next `kumadp run` removes it")
    for path in control_socket_files(environ):
        try:
            with connected(path, owner_of(path), 0.5):
                continue
        except ConnectionRefusedError:
            results += warning(f"{path}: nothing listens there any more", f"a killed kumadp left it: rm {path}")
        except OSError:
            continue
    for folder in dict.fromkeys((*sorted(Path("/run/kumadp").glob("*/")), *work_dirs)):
        state = read_state(folder) if _is_dead(folder / LOCK_FILE) else None
        if state is not None and (living := adoptable(state)):
            names = ", ".join(f"{child.name} (pid {child.pid})" for child in living)
            results += warning(
                f"{names} left by a dead kumadp in {folder}", "kumadp sweep --work-dir DIR, or run kumadp again"
            )
    return results or ok("no leftovers of dead runs")


def _is_dead(lock: Path) -> bool:
    """Return whether there is a lock file that no process holds."""
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
) -> list[CheckResult]:
    """Check that the installed units are those of this kumadp, and that systemd has loaded them.

    ``instance`` is the instance of the template unit that may be loaded; ``folder`` replaces the shipped units, for
    tests.
    """
    if not await asyncio.to_thread(booted.is_dir):
        return skipped("systemd is not the init system here")
    results: list[CheckResult] = []
    for unit in UNITS:
        results += await _unit(unit, instance or "doctor", folder, environ)
    return results or skipped(f"neither {' nor '.join(UNITS)} is installed")


async def _unit(unit: str, instance: str, folder: Path | None, environ: Mapping[str, str]) -> list[CheckResult]:
    # A template is not loaded by itself.
    name = unit.replace("@.", f"@{instance}.")
    try:
        answer = await output_of(
            Path(shutil.which("systemctl", path=environ.get("PATH")) or "systemctl"),
            *("show", "--property=FragmentPath,NeedDaemonReload,DropInPaths", name),
            environment=dict(environ),
            deadline=_SYSTEMCTL_TIMEOUT,
        )
    except (OSError, TimeoutError) as error:
        return warning(f"{unit}: systemctl does not answer: {str(error) or 'not in time'}")
    shows = dict(line.partition("=")[::2] for line in answer.splitlines() if "=" in line)
    installed = shows.get("FragmentPath", "")
    if not installed:
        return []
    results: list[CheckResult] = []
    if shows.get("NeedDaemonReload") == "yes":
        results += warning(f"{unit} has changed on disk", "systemctl daemon-reload")
    if await asyncio.to_thread(_differs, Path(installed), unit, folder):
        hint = "install it again; use `systemctl edit` for your own changes"
        results += warning(f"{installed} is not the unit of this kumadp", hint)
    return results or ok(f"{unit} is the unit of this kumadp")


def _differs(installed: Path, unit: str, folder: Path | None) -> bool:
    """Return whether a unit differs from the shipped one in more than comments and the path of the program."""

    def directives(text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        return [_PROGRAM.sub(r"\1kumadp", line) for line in lines if line and line[0] not in "#;"]

    try:
        reference = (folder / unit).read_bytes() if folder is not None else shipped("systemd", unit)
        return directives(installed.read_text(errors="replace")) != directives(reference.decode())
    except OSError:
        return True
