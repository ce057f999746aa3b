"""What a version of Kuma to come ignores, refuses and needs of a data plane's settings and Dataplanes. Pure.

The rules for Dataplanes are those of `kumadp validate --kuma`, seen with real control planes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from kumadp.envoy.version import SUPPORTED
from kumadp.errors import ResourceError
from kumadp.resources.findings import WITHOUT_EFFECT
from kumadp.resources.kuma_versions import KUMA_3
from kumadp.resources.load import load_resource, load_resource_file
from kumadp.settings.kuma_2 import only_for_kuma_2
from kumadp.settings.model import options_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kumadp.errors import Problem
    from kumadp.resources.resource import Resource
    from kumadp.settings.model import Settings

Effect = Literal["refused", "ignored", "needed"]
# The version of Kuma in which an option came: control planes before it do not read what it adds to the request.
SINCE: dict[str, tuple[int, int]] = {
    "application_probe_proxy_port": (2, 9),
    "bind_outbounds": (2, 11),
    "transparent_proxy": (2, 11),
    "transparent_proxy_config": (2, 11),
    "unified_resource_naming": (2, 12),
    "spire_supported": (2, 12),
    "spire_socket_path": (2, 12),
    "strict_inbound_ports": (2, 13),
    "otel_pipe_enabled": (2, 14),
    "reuse_port_enabled": (2, 14),
    "host_ip": (2, 14),
}
# What is needed on the side of the control plane (configs/README.md, "Dataplanes for Kuma 2.8 to 3.0", "With Kuma 3").
_NEEDED_BY_3 = (
    ("Mesh", "meshServices: {mode: Exclusive}, before the control plane is upgraded: 3.0 knows no other mode"),
    ("Mesh", "with mTLS a MeshIdentity, which is where certificates come from in 3.0"),
    ("MeshService", "dataplaneLabels in the selector, while 2.14 runs, and a name that is a DNS label"),
    ("dashboards, alerts", "no selection by service, dataplane or kuma_io_service: 3.0 adds only mesh and zone"),
)


class UpgradeFinding(Struct, frozen=True):
    """One thing that differs with the version to come: ``where`` is a setting, or a file with its field."""

    effect: Effect
    where: str
    text: str


def of_settings(settings: Settings, origins: Mapping[str, str], version: str) -> Iterator[UpgradeFinding]:
    """Yield what becomes of the options that are set, each as it was typed.

    ``origins`` as in `kumadp.settings.resolve.Resolved`.
    """
    of_kuma_3 = version in KUMA_3
    if of_kuma_3:
        for name in only_for_kuma_2(settings, origins):
            yield UpgradeFinding("ignored", name, "without effect with Kuma 3")
        if settings.proxy_type != "dataplane":
            text = "Kuma 3 has no ingress and egress: write a Dataplane with networking.listeners, with its token"
            yield UpgradeFinding("refused", _where(origins, "proxy_type"), text)
        if settings.dns_mode == "coredns":
            text = "Kuma 3 has names of the mesh for the embedded resolver only: auto or embedded"
            yield UpgradeFinding("needed", _where(origins, "dns_mode"), text)
    number = _number(version)
    for option in options_of("run"):
        since = SINCE.get(option.field)
        if since is not None and since > number and getattr(settings, option.field) != option.default:
            text = f"Kuma {version} does not know it: it came with {since[0]}.{since[1]}"
            yield UpgradeFinding("ignored", _where(origins, option.field), text)


def of_resource(loaded: Resource | ResourceError) -> Iterator[UpgradeFinding]:
    """Yield what the API of the version to come refuses and ignores of a resource that was loaded for it."""
    if isinstance(loaded, ResourceError):
        for problem in loaded.problems:
            yield UpgradeFinding("refused", _place(problem), _text(problem))
        return
    for note in loaded.notes:
        yield UpgradeFinding("ignored" if WITHOUT_EFFECT in note.message else "needed", _place(note), _text(note))


def of_mesh(version: str) -> Iterator[UpgradeFinding]:
    """Yield what the control plane needs beyond settings and Dataplanes, which nothing here can check."""
    if version not in KUMA_3:
        return
    yield from (UpgradeFinding("needed", where, text) for where, text in _NEEDED_BY_3)


def of_envoy(installed: str, version: str) -> Iterator[UpgradeFinding]:
    """Yield whether the Envoy here is older than the one that the version to come ships with; ``installed``: 1.40.0."""
    shipped = max(numbers for numbers, (_, kuma) in SUPPORTED.items() if kuma == version)
    try:
        major, minor = map(int, installed.split(".")[:2])
    except ValueError:
        return
    if (major, minor) < shipped:
        text = f"Kuma {version} ships with Envoy {shipped[0]}.{shipped[1]}, here it is {installed}: upgrade it first"
        yield UpgradeFinding("needed", "Envoy", text)


def load_for(version: str, settings: Settings | None, files: Sequence[str]) -> list[Resource | ResourceError]:
    """Load the Dataplane of the settings, and files, as the API of ``version`` judges them."""
    found: list[Resource | ResourceError] = []
    variables = dict(settings.dataplane_vars) if settings is not None else {}
    try:
        if settings is not None and settings.dataplane_file:
            found.append(load_resource_file(settings.dataplane_file, variables=variables, version=version))
        elif settings is not None and settings.dataplane:
            found.append(load_resource(settings.dataplane, "--dataplane", variables=variables, version=version))
    except ResourceError as error:
        found.append(error)
    for file in files:
        try:
            found.append(load_resource_file(file, variables=variables, version=version))
        except ResourceError as error:
            found.append(error)
    return found


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def _where(origins: Mapping[str, str], field: str) -> str:
    return origins.get(field, field).partition(" ")[2] or field


def _place(problem: Problem) -> str:
    where = f"{problem.file}:{problem.line}" if problem.line else problem.file
    return ": ".join(filter(None, (where, problem.path)))


def _text(problem: Problem) -> str:
    return f"{problem.message} ({problem.hint})" if problem.hint else problem.message
