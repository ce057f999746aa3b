"""``kumadp run``: reads and checks settings and resources, then runs the data plane."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from msgspec.structs import replace

from kumadp.cli.options import command_line, command_with_options, typed_names
from kumadp.errors import ExitCode, KumadpError, Problem, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings
    from kumadp.settings.resolve import Resolved
    from kumadp.standalone.mesh import Mesh
    from kumadp.yamltext import Bounds


@command_with_options("run", takes_command=True)
def run(**flags: object) -> None:
    """Run a data plane.

    With a control plane (--cp-address), kumadp fetches Envoy's bootstrap and runs Envoy and CoreDNS, as kuma-dp does.
    With --standalone PATH it needs no control plane: PATH is a Dataplane file or a directory of Dataplane files.

    The first SIGTERM or SIGINT drains and stops, a second one ends the drain early, a third one kills everything at
    once. SIGUSR2 drains inbound and keeps running.

    With -- CMD ARG... kumadp also runs the application and exits with its exit code, as the entrypoint of a workload's
    image. The application gets SIGTERM, SIGINT or SIGQUIT after inbound has drained, and SIGHUP at once.

    Options marked (reload) are applied by a reload (kumadp reload, SIGHUP); all others need a restart.
    """
    from kumadp.cli.exposure import exposures
    from kumadp.settings.option import own_variable
    from kumadp.settings.resolve import config_file, resolve

    config, typed, application = config_file(flags, os.environ), typed_names(), command_line()

    def read() -> Resolved:
        text = read_settings_file(config) if config else None
        return resolve("run", flags, os.environ, text, config, typed)

    message = str(flags.get("termination_log") or os.environ.get(own_variable("--termination-log")) or "")
    try:
        resolved = read()
        message = resolved.settings.termination_log
        warnings = (*resolved.warnings, *exposures(resolved.settings, resolved.origin, config))
        resolved = replace(resolved, warnings=warnings)
        launch(resolved, os.environ, lambda: read().settings, config, application)
    except KumadpError as error:
        _write_termination_message(error, message)
        raise _nothing_given(error, typed, config) from None


class NothingToRun(KumadpError):
    """Neither options nor variables name a data plane."""

    exit_code = ExitCode.SETTINGS


# What `run` prints if it gets nothing to run.
WAYS = """\
nothing to run is given. Three ways to begin:
  kumadp run --standalone=dataplane.yaml    (without a control plane; the file: README, `Without a control plane`)
  kumadp run --cp-address=https://HOST:5678 --ca-cert-file=ca.crt --dataplane-file=dataplane.yaml \
--dataplane-token-file=token
  kumadp demo    (to look at it first)
In place of a kuma-dp that runs here: kumadp migrate"""


def _nothing_given(error: KumadpError, typed: Mapping[str, str], config: str) -> KumadpError:
    """Return the error for `kumadp run` alone, with neither options nor variables; else the one that there is."""
    from kumadp.settings.model import options_of

    variables = {name for option in options_of("run") for name in option.variables if name.startswith("KUMA")}
    if typed or config or not isinstance(error, SettingsError) or variables & os.environ.keys():
        return error
    return NothingToRun(WAYS)


def _write_termination_message(error: KumadpError, path: str) -> None:
    """Write a failure before the run loop for Kubernetes; not for the check that another kumadp makes of this one."""
    from kumadp.host.reexec.interim_responder import CHECK_VARIABLE
    from kumadp.process.crash_records import termination_message, write_termination_message
    from kumadp.settings.model import Settings

    if CHECK_VARIABLE not in os.environ:
        lines = (str(problem) for problem in getattr(error, "problems", (error,)))
        why = termination_message("\n".join((f"exit code {int(error.exit_code)}:", *lines)), None)
        write_termination_message(Path(path or Settings().termination_log), why)


def launch(
    resolved: Resolved,
    environ: MutableMapping[str, str],
    again: Callable[[], Settings],
    config: str = "",
    application: tuple[str, ...] = (),
) -> NoReturn:
    """Check settings and resources, run, and exit with the exit code. Raises KumadpError before the loop runs.

    The warnings of ``resolved`` are logged. ``again`` reads the settings again for a reload; ``config`` is the settings
    file; ``application`` is the command line of an application to run as well.
    """
    from kumadp.process.early_output import end_early

    try:
        code = _run(resolved, environ, again, config, application)
    finally:
        end_early()
    if code and not application and sys.stderr.isatty():
        # The reason is the last line of the log.
        sys.stderr.write(f"See: {KumadpError.more}\n")
        sys.stderr.flush()
    end(code)


def _run(
    resolved: Resolved,
    environ: MutableMapping[str, str],
    again: Callable[[], Settings],
    config: str,
    application: tuple[str, ...],
) -> int:
    from kumadp.host.reexec.interim_responder import CHECK_VARIABLE

    if CHECK_VARIABLE not in environ:
        _begin_versions(resolved.settings, environ)
    from kumadp.cli.logs import open_logs
    from kumadp.core.context import Context, Inputs
    from kumadp.daemon.run import run_daemon
    from kumadp.daemon.start import Launch
    from kumadp.host.core_dumps import disable_core_dumps
    from kumadp.host.descriptors import raise_limit
    from kumadp.host.process_name import set_process_name
    from kumadp.host.reexec.handover import block_signals_in_threads, receive
    from kumadp.settings.display import display

    if application:
        _check_application(application, resolved.settings, environ)
    settings, resource, mesh = checked(resolved.settings)
    transparent = read_transparent_files(settings)
    if CHECK_VARIABLE in environ:
        from kumadp.cli.reexec_check import pass_check

        pass_check(environ)
        end(0)
    handover = receive(environ)
    disable_core_dumps()
    raise_limit()
    logs = open_logs(settings)
    logs.capture()
    set_process_name("kuma-dp")
    try:
        notes = (
            *resolved.warnings,
            *overruled(settings, resource),
            *(str(note) for note in (resource.notes if resource else ())),
        )
        inputs = Inputs(
            settings, resource, environ, mesh is not None, transparent, config, application, resolved.origin
        )
        launch_inputs = Launch(lambda: checked(again())[:2], logs.flush, logs.status, mesh, handover)
        work = run_daemon(Context(inputs), launch_inputs, notes, display(settings))
        runner = asyncio.Runner(loop_factory=_loop_factory(settings.use_uvloop))
        runner.run(block_signals_in_threads())
        return int(runner.run(work).code)
    finally:
        logs.close()


def _begin_versions(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run Envoy and CoreDNS for their versions, which the bootstrap request reports, while the rest is imported."""
    from kumadp.envoy.binary import find_envoy
    from kumadp.host.environment import child_environment
    from kumadp.process.early_output import begin_early
    from kumadp.settings.model import secret_variables

    environment = child_environment(environ, secret_variables())
    # What is not there is reported by the parts.
    with contextlib.suppress(KumadpError):
        begin_early(find_envoy(settings.binary_path), "--version", environment=environment)
        from kumadp.dns.plan import chosen_coredns

        if (coredns := chosen_coredns(settings)) is not None:
            begin_early(coredns, "--version", environment=environment, with_errors=True)


def _check_application(argv: tuple[str, ...], settings: Settings, environ: Mapping[str, str]) -> None:
    """Raise SpawnError if it cannot be run, SettingsError if kumadp would read its standard input."""
    from kumadp.process.application import find_program

    readers = {"--config": settings.config == "-", "--dataplane-file": settings.dataplane_file == "-",
               "--transparent-proxy-config": "-" in settings.transparent_proxy_config}  # fmt: skip
    problems = [
        Problem(flag, "standard input is the application's", "use a file") for flag, reads in readers.items() if reads
    ]
    if problems:
        raise SettingsError(problems)
    find_program(argv[0], environ)


def checked(settings: Settings) -> tuple[Settings, Resource | None, Mesh | None]:
    """Return the settings with the type of the given resource, the resource and the mesh; raises KumadpError."""
    from kumadp.envoy.argv import check_extra
    from kumadp.host.log.secrets import register

    extra = check_extra(settings.envoy_args)
    if extra:
        raise SettingsError(extra)
    resource, mesh = _load(settings)
    register(settings.token)
    for address in settings.cp_addresses:
        register(urlsplit(address).password or "")
    return _with_proxy_type(settings, resource), resource, mesh


def overruled(settings: Settings, resource: Resource | None) -> list[str]:
    """Return warnings about options without effect because the Dataplane sets another value."""
    from kumadp.settings.model import Settings as Defaults

    if resource is None:
        return []
    admin, probes = resource.spec.networking.admin, getattr(resource.spec, "probes", None)
    ports = []
    if admin is not None and admin.port and settings.admin_port not in {None, admin.port}:
        ports.append(("--admin-port", settings.admin_port, "networking.admin.port", admin.port))
    port = settings.virtual_probes_port
    if probes is not None and probes.port and port not in {Defaults().virtual_probes_port, probes.port}:
        ports.append(("--virtual-probes-port", port, "probes.port", probes.port))
    return [f"{flag} {given} is ignored: the Dataplane sets {field} {port}" for flag, given, field, port in ports]


def end(code: int) -> NoReturn:
    """Exit at once, after everything has stopped and the log is written.

    A normal exit would wait for threads that query a silent name server or write to a stuck terminal.
    """
    os._exit(code)


def _loop_factory(use_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    if use_uvloop:
        with contextlib.suppress(ImportError):
            import uvloop

            return uvloop.new_event_loop
    from kumadp.host.event_loop import EventLoop

    return EventLoop


def _load(settings: Settings) -> tuple[Resource | None, Mesh | None]:
    """Return the given resource (None if only the control plane has it), and the mesh in standalone mode."""
    if settings.standalone:
        from kumadp.standalone.mesh import read_mesh

        mesh = read_mesh(Path(settings.standalone), settings.name)
        return mesh.ours, mesh
    if not (settings.dataplane_file or settings.dataplane):
        return None, None
    from kumadp.host.reexec.handover import buffer_stdin
    from kumadp.resources.load import load_resource, load_resource_file

    if settings.dataplane_file == "-":
        buffer_stdin()
    if settings.dataplane_file:
        return load_resource_file(settings.dataplane_file, variables=settings.dataplane_vars), None
    return load_resource(settings.dataplane, "--dataplane", variables=settings.dataplane_vars), None


def read_transparent_files(settings: Settings) -> TransparentProxy | None:
    """Return the transparent proxy configuration of this host, None if no setting has one; raises SettingsError."""
    names = settings.transparent_proxy_config
    if settings.standalone or not (settings.transparent_proxy or names):
        return None
    from kumadp.resources.transparent_proxy import BOUNDS, read_transparent

    # kuma-dp's help documents a comma-separated list, but its code takes the whole text for one name.
    files = [part for name in names for part in ((name,) if Path(name).exists() else name.split(",")) if part.strip()]
    flag = "--transparent-proxy-config"
    return read_transparent([(file, _read_yaml(file, flag, BOUNDS)) for file in files])


def _with_proxy_type(settings: Settings, resource: Resource | None) -> Settings:
    """Set the proxy type of the resource; raises SettingsError for another --proxy-type, as Kuma does."""
    if resource is None:
        return settings
    from kumadp.resources.types import PROXY_TYPES

    kind = PROXY_TYPES[resource.kind]
    if settings.proxy_type not in {"dataplane", kind}:
        message = f"{settings.proxy_type!r} does not match the given {resource.kind}"
        raise SettingsError([Problem("--proxy-type", message, f"remove it, or set it to {kind}")])
    return replace(settings, proxy_type=kind)


def read_settings_file(name: str) -> str:
    """Return the text of the settings file; raises SettingsError."""
    from kumadp.settings.file import BOUNDS

    return _read_yaml(name, "--config", BOUNDS)


def _read_yaml(name: str, flag: str, bounds: Bounds) -> str:
    from kumadp import yamltext
    from kumadp.host.reexec.handover import buffer_stdin

    try:
        if name == "-":
            buffer_stdin()
        return yamltext.read(name, bounds)
    except UnicodeDecodeError:
        reason = "is not UTF-8 text"
    except OSError as error:
        reason = str(error.strerror)
    raise SettingsError([Problem(flag, f"{name}: {reason}", "give a readable YAML file")])
