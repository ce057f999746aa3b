"""Checks of Envoy, CoreDNS, the bootstrap that `run` would use, the ports, and the running data plane."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kumadp.bootstrap.generation import Generation, generation_of
from kumadp.bootstrap.prepare import Target, prepare_fetched
from kumadp.controlplane.bootstrap_client import KumaClient
from kumadp.daemon.generation_notes import fields_without_effect, without_effect
from kumadp.daemon.ports import check_plan, envoy_addresses, own_addresses
from kumadp.daemon.program_versions import reported as reported_versions
from kumadp.daemon.sidecar_facts import dns_listener, sidecar_of
from kumadp.dns.coredns.binary import coredns_version
from kumadp.dns.plan import chosen_coredns, names_missing, plan_dns, wants_coredns
from kumadp.doctor.report import CheckResult, failed, ok, warning
from kumadp.envoy.binary import find_envoy
from kumadp.envoy.launch import launch_argv
from kumadp.envoy.reload import Plan, check
from kumadp.envoy.version import envoy_version, is_supported, supported_versions
from kumadp.errors import PortsTaken
from kumadp.host.net.ports import check_ports
from kumadp.host.work_dir import RELAY_SOCKET, make_temporary, open_work_dir, temporary_folders
from kumadp.probes.plan import plan_probes
from kumadp.process.child import Command
from kumadp.resources.types import Dataplane
from kumadp.standalone.part import prepare_standalone

if TYPE_CHECKING:
    from kumadp.dns.plan import DnsPlan
    from kumadp.doctor.report import CheckState
    from kumadp.doctor.subject import Subject
    from kumadp.host.net.ports import BindAddress
    from kumadp.probes.plan import ProbesPlan

# Time for the bootstrap request, which `run` would retry (seconds).
_FETCH_TIMEOUT = 5.0


async def envoy(subject: Subject) -> list[CheckResult]:
    """Check which Envoy would run, and whether a supported Kuma release ships with its version."""
    path = await asyncio.to_thread(find_envoy, subject.settings.binary_path)
    version = (await envoy_version(path, subject.children_environment)).version
    if subject.mesh is None and not is_supported(version):
        return warning(
            f"{version} at {path}: no supported Kuma release ships with it", f"supported: {supported_versions()}"
        )
    return ok(f"{version} at {path}")


async def coredns(subject: Subject) -> list[CheckResult]:
    """Check which CoreDNS would run, or that the embedded resolver is used."""
    settings = subject.settings
    if plan_dns(settings, None) is None:
        return ok("DNS is off")
    path = await asyncio.to_thread(chosen_coredns, settings)
    if not wants_coredns(settings):
        return ok("the embedded resolver is used, as configured")
    if path is None:
        return ok("no CoreDNS on PATH: the embedded resolver is used")
    version = await coredns_version(path, subject.children_environment)
    return ok(f"{version} at {path}") if version else failed(f"{path} does not print its version", "is it CoreDNS?")


def addresses(subject: Subject, dns: DnsPlan | None) -> tuple[list[BindAddress], list[BindAddress]]:
    """Return what kumadp and CoreDNS bind, and what Envoy binds, by settings and Dataplane."""
    own = own_addresses(subject.settings, dns, _probes(subject))
    standalone = subject.mesh is not None
    return own, envoy_addresses(subject.resource, standalone=standalone, dns=dns, transparent=subject.transparent)


def _probes(subject: Subject) -> ProbesPlan | None:
    spec = subject.resource.spec if subject.resource is not None else None
    return plan_probes(subject.settings, spec if isinstance(spec, Dataplane) else None, subject.environ)[0]


async def ports(subject: Subject) -> list[CheckResult]:
    """Check that all ports are free, or held by the running kumadp."""
    dns = plan_dns(subject.settings, await asyncio.to_thread(chosen_coredns, subject.settings), subject.transparent)
    own, others = addresses(subject, dns)
    check_plan(own, others, subject.resource)
    try:
        await check_ports([*own, *others], held_by=subject.pids)
    except PortsTaken as error:
        return [
            CheckResult("failed", problem.message, f"{problem.hint} ({problem.path})") for problem in error.problems
        ]
    numbers = sorted({address.port for address in (*own, *others) if address.port})
    shown = ", ".join(map(str, numbers))
    return ok(f"held by the running kumadp, or free: {shown}" if subject.pids else f"free: {shown}")


async def bootstrap(subject: Subject) -> list[CheckResult]:
    """Check that the guard and Envoy (`--mode validate`) accept the bootstrap, prepared as by `run`.

    Fetching it from a control plane registers nothing: Kuma stores a Dataplane when its stream opens.
    """
    configured = (subject.settings.work_dir, subject.environ.get("RUNTIME_DIRECTORY", "").split(":")[0])
    folders = (*temporary_folders(subject.environ), *(Path(folder) for folder in configured if folder))
    folder = await asyncio.to_thread(make_temporary, folders, "doctor-")
    try:
        return await _bootstrap(subject, str(folder))
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _bootstrap(subject: Subject, folder: str) -> list[CheckResult]:
    settings = subject.settings
    binary = await asyncio.to_thread(find_envoy, settings.binary_path)
    version = await envoy_version(binary, subject.children_environment)
    dns = plan_dns(settings, await asyncio.to_thread(chosen_coredns, subject.settings), subject.transparent)
    own, _ = addresses(subject, dns)
    work = await asyncio.to_thread(open_work_dir, subject.name, folder, "", "", subject.environ)
    generation: Generation | None = None
    try:
        target = Target(work, own)
        if subject.mesh is not None:
            prepared, _ = await prepare_standalone(subject.mesh, settings, target, dns_listener(dns))
            origin = "generated from the Dataplane"
        else:
            serves_probes = _probes(subject) is not None
            sidecar = sidecar_of(settings, subject.environ, dns, subject.transparent, serves_probes=serves_probes)
            client = KumaClient(settings, subject.resource, work, reported_versions(version, ""), sidecar)
            relay = Path(folder) / RELAY_SOCKET if settings.xds_relay == "on" else None
            fetched = await client.fetch(lambda _reason: None, _FETCH_TIMEOUT)
            admin = subject.resource.spec.networking.admin if subject.resource is not None else None
            prepared = await prepare_fetched(
                fetched, settings, target, relay=relay, admin_port=admin.port if admin is not None else 0
            )
            generation = generation_of(fetched.tree)
            origin = f"fetched from the control plane (Kuma {generation}), which registers nothing"
        argv = launch_argv(settings, prepared, binary)

        async def command() -> Command:
            return Command(argv, "envoy", subject.children_environment)

        refused = (await check(Plan(command, prepared.admin, prepared.dynamic), None, "not queried")).refused
        if refused:
            return failed(refused, f"the bootstrap was {origin}")
        accepted = ok(f"{origin}; Envoy accepts it, with its admin on {prepared.admin}")
        return [*accepted, *_of_generation(subject, generation)]
    finally:
        await asyncio.to_thread(work.close)


def _of_generation(subject: Subject, generation: Generation | None) -> list[CheckResult]:
    """Return what the user set and has no effect with a control plane of this generation."""
    settings = subject.settings
    results: list[CheckResult] = []
    if note := without_effect(generation, settings, subject.origins):
        results += warning(note, "remove them, unless a control plane of Kuma 2 may come back")
    for problem in fields_without_effect(generation, subject.resource):
        results += warning(str(replace(problem, hint="")), problem.hint)
    if missing := names_missing(settings, generation):
        results += warning(missing)
    elif generation is Generation.KUMA_3 and wants_coredns(settings):
        results += ok("the embedded resolver answers names, and CoreDNS is not used: the control plane is of Kuma 3")
    return results


def running(subject: Subject) -> list[CheckResult]:
    """Check the status of the running data plane."""
    status = subject.status
    if not status:
        return [CheckResult("skipped", "no kumadp of this name runs here")]
    results: list[CheckResult] = []
    groups: tuple[tuple[CheckState, list[str]], ...] = (
        ("failed", [] if status["ready"] else [f"not ready: {why}" for why in status["reasons"] or [status["phase"]]]),
        ("failed", [f"{part} failed permanently: {reason}" for part, reason in status["fatal"].items()]),
        ("warning", list(status["concerns"])),
        ("warning", [f"{why}: a restart is required" for why in status.get("restart_required", ())]),
    )
    for state, texts in groups:
        results += [CheckResult(state, text, "for details: kumadp status") for text in texts]
    for name, child in status["children"].items():
        if child["restarts"]:
            results += warning(f"{name} was restarted {child['restarts']} times, last exit: {child['last_exit']}")
    if crash := status.get("crashes", {}).get("newest"):
        results += warning(f"a crash record: {crash}", "read it, then remove it")
    return results or ok(f"{status['name']} is READY, pid {status['pid']}")
