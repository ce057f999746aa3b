"""The files that make kumadp do what a kuma-dp does, the ports it needs, and how to switch over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from msgspec import Struct

from kumadp import __version__
from kumadp.controlplane.features import announced_features
from kumadp.host.log.secrets import redact, register
from kumadp.host.net.ports import PortUse, port_uses
from kumadp.host.systemd_units import SETTINGS, USER, drop_in_file, is_hidden, settings_file, unit_of
from kumadp.migrate.verdicts import Judged, judge
from kumadp.settings.file import read_settings
from kumadp.settings.model import options
from kumadp.settings.values import write_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kumadp.doctor.subject import Subject
    from kumadp.errors import KumadpError, Problem
    from kumadp.host.net.ports import BindAddress
    from kumadp.migrate.source import KumaDp
    from kumadp.migrate.verdicts import OptionVerdict

_NOT_IN_A_UNIT = re.compile(r"[^A-Za-z0-9_.-]|\A[.-]")
_PATHS = ("ca_cert_file", "dataplane_file", "token_path", "coredns_config_template_path", "metrics_cert_path",
          "metrics_key_path", "binary_path", "coredns_path")  # fmt: skip
_HEAD = "# Settings of kumadp, by `kumadp migrate` from {}.\n"


class NewFile(Struct, frozen=True):
    """A file that is to be written; the text of a secret one is never shown."""

    path: Path
    text: str
    mode: int = 0o640
    secret: bool = False


class Clash(Struct, frozen=True):
    """An address that kumadp binds: free, held by the kuma-dp that it replaces, or in the way."""

    address: str
    purpose: str
    state: Literal["free", "held by kuma-dp", "in the way"]
    holder: str = ""


class MigrationPlan(Struct):
    """Everything that `kumadp migrate` prints. ``problems`` are in the way, as are options and clashes marked so."""

    source: KumaDp
    name: str
    judged: Judged
    files: list[NewFile]
    problems: list[str]
    user: str = USER
    clashes: list[Clash] = []
    control_plane: list[str] = []

    @property
    def options(self) -> list[OptionVerdict]:
        """The verdicts."""
        return self.judged.options

    @property
    def unit(self) -> str:
        """The unit of the new data plane."""
        return unit_of(self.name)

    @property
    def in_the_way(self) -> int:
        """How many things have to be changed first."""
        rows = [*(option.verdict for option in self.options), *(clash.state for clash in self.clashes)]
        return rows.count("in the way") + len(self.problems)

    def switch_over(self) -> dict[str, str]:
        """Return the commands: to kumadp, back, and to keep it."""
        old, new = self.source.unit, self.unit
        if self.source.service:
            service = self.source.service
            return {
                "to kumadp": f"docker compose up --detach --no-deps {service}",
                "back": "the same, with the old image",
            }
        stop = f"systemctl stop {old}" if old else f"kill {self.source.pids[0] if self.source.pids else 'PID'}"
        wait = "" if old or not self.source.pids else f" && tail --pid={self.source.pids[0]} --follow /dev/null"
        commands = {
            "to kumadp": f"{stop}{wait} && systemctl start {new}",
            "back": f"systemctl stop {new} && " + (f"systemctl start {old}" if old else "start kuma-dp as before"),
        }
        if old:
            commands["keep it"] = f"systemctl disable {old} && systemctl enable {new}"
        return commands


def token_file(name: str) -> Path:
    """Return where the token of a data plane is written, if it was given itself."""
    return SETTINGS / f"{name or 'kumadp'}.token"


def unit_name(name: str) -> str:
    """Return the name of a data plane as a part of a unit's name."""
    return _NOT_IN_A_UNIT.sub("_", name)


def judge_all(source: KumaDp, name: str) -> Judged:
    """Judge every option, and mask its secrets in everything that is shown from now on."""
    judged = judge(source, token_file(name))
    for secret in judged.secrets():
        register(secret)
    return judged


def settings_text(judged: Judged, origin: str) -> str:
    """Return the settings file; redact it before it is shown."""
    tree: dict[str, Any] = {}
    for option in options():
        if option.field not in judged.values:
            continue
        *parents, last = option.key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = _plain(option.kind, judged.values[option.field])
    head = _HEAD.format(origin)
    return head + (yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000) if tree else "")


def _plain(kind: Any, value: object) -> object:
    if kind == "duration":
        return write_value(kind, value)
    return list(value) if isinstance(value, tuple) else value


def read_back(text: str, path: Path) -> list[Problem]:
    """Return what kumadp would refuse in a settings file."""
    problems: list[Problem] = []
    read_settings(text, str(path), problems)
    return problems


def make_plan(source: KumaDp, name: str, judged: Judged, subject: Subject | None) -> MigrationPlan:
    """Return the files and users; ``subject`` is the data plane by the settings, None if these cannot be used."""
    text = settings_text(judged, source.origin)
    plan = MigrationPlan(source, name, judged, [], list(source.problems))
    if source.service:
        return plan
    plan.user = source.user if source.user not in {"", "root", "0"} else USER
    plan.files.append(NewFile(settings_file(name), text))
    plan.files.append(NewFile(drop_in_file(name), _drop_in(plan, subject), 0o644))
    if judged.environ:
        lines = "".join(f"{key}={_quoted(value)}\n" for key, value in judged.environ.items())
        plan.files.append(NewFile(SETTINGS / f"{name or 'kumadp'}.env", lines, secret=bool(judged.secrets())))
    if judged.token:
        plan.files.append(NewFile(token_file(name), judged.token.strip() + "\n", secret=True))
    plan.problems += _unreadable(plan, judged)
    if subject is not None and plan.user == USER and _redirects(subject):
        plan.problems.append(
            f"traffic is redirected, but for that of {source.user or 'the user'} of kuma-dp: install transparent "
            f"proxying for user {USER}, or run kuma-dp as another user than root first"
        )
    return plan


def _redirects(subject: Subject) -> bool:
    networking = getattr(subject.resource.spec, "networking", None) if subject.resource is not None else None
    return subject.transparent is not None or getattr(networking, "transparent_proxying", None) is not None


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _drop_in(plan: MigrationPlan, subject: Subject | None) -> str:
    """Return the drop-in of the unit: what this kuma-dp has beyond kumadp@.service."""
    old = plan.source.unit
    lines = [f"# By `kumadp migrate`: what the kuma-dp of {plan.source.origin} has beyond {plan.unit}."]
    if old:
        lines += [
            "[Unit]",
            "# One data plane cannot run twice: starting either stops the other.",
            f"Conflicts={old}",
            f"After={old}",
        ]
    service = []
    if plan.user != USER:
        service += [f"User={plan.user}", f"Group={plan.source.group or plan.user}", f"SupplementaryGroups={USER}"]
    if subject is not None and (low := _low_ports(subject)):
        service += [
            f"# Ports below 1024: {', '.join(map(str, low))}.",
            "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        ]
    if log := plan.judged.values.get("log_output_path"):
        folder = str(Path(str(log)).parent).replace("%", "%%")
        service.append(f"ReadWritePaths={_quoted(folder)}")
    return "\n".join([*lines, *(["[Service]", *service] if service else ())]) + "\n"


def _low_ports(subject: Subject) -> list[int]:
    networking = getattr(subject.resource.spec, "networking", None) if subject.resource is not None else None
    inbounds = [*getattr(networking, "inbound", ()), *getattr(networking, "listeners", ())]
    return sorted({inbound.port for inbound in inbounds if 0 < (inbound.port or 0) < 1024})


def _unreadable(plan: MigrationPlan, judged: Judged) -> list[str]:
    """Return the files that the unit's user will not be able to read, each with the command that changes it."""
    if plan.user != USER and plan.user == plan.source.user:
        return []
    problems = []
    for field in _PATHS:
        path = Path(str(judged.values.get(field, "")))
        if not path.is_absolute() or path == token_file(plan.name) or is_hidden(path):
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
            continue
        if not mode & 0o004:
            problems.append(f"user {USER} cannot read {path}: chgrp {USER} {path} && chmod 640 {path}")
        elif closed := next(filter(_is_closed, path.parents), None):
            text = f"user {USER} cannot read {path}: {closed} is closed"
            problems.append(f"{text}; move the file, for example to /etc/kumadp")
    return problems


def _is_closed(folder: Path) -> bool:
    try:
        return not folder.stat().st_mode & 0o001
    except OSError:
        return True


def clashes(addresses: Iterable[BindAddress], pids: Sequence[int]) -> list[Clash]:
    """Return for each address whether it is free, and who holds it. May block."""
    return [_clash(use, frozenset(pids)) for use in port_uses(addresses)]


def _clash(use: PortUse, pids: frozenset[int]) -> Clash:
    address = use.address
    shown = f"{address.host}:{address.port}/{address.protocol}"
    if not use.holder:
        return Clash(shown, address.purpose, "free")
    ours = bool(use.pids) and pids.issuperset(use.pids)
    return Clash(shown, address.purpose, "held by kuma-dp" if ours else "in the way", use.holder)


def problems_of(error: KumadpError) -> list[str]:
    """Return the texts of a failure, one for each problem."""
    return [redact(str(problem)) for problem in getattr(error, "problems", (error,))]


def seen_by_control_plane(plan: MigrationPlan, subject: Subject) -> list[str]:
    """Return what the control plane sees that is the same, and that differs."""
    settings, source = subject.settings, plan.source
    where = f"mesh {subject.mesh_name}" if settings.proxy_type == "dataplane" else f"proxy type {settings.proxy_type}"
    features = announced_features(settings, transparent=subject.transparent is not None)
    return [
        f"the same data plane: {subject.name} in {where}, with the same token: policies, certificates and metrics stay",
        f"version of kumaDp: {__version__} instead of {source.version or 'that of kuma-dp'}; the GUI may not know it",
        f"features: {', '.join(features)}; those of the embedded resolver and of OTLP if these are used",
        "the Dataplane is offline from the end of kuma-dp's stream until kumadp's is accepted",
        "restarts of Envoy no longer end the stream: kumadp holds it (--xds-relay=off: Envoy does, as with kuma-dp)",
    ]
