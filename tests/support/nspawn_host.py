"""A throw-away host with a real systemd, booted by systemd-nspawn on an overlay of this one's root."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.needs import missing
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

# Units of this host that would slow the boot or access the network.
_MASKED = (
    "systemd-firstboot.service",
    "machines.target",
    "systemd-timesyncd.service",
    "e2scrub_reap.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "man-db.timer",
    "fstrim.timer",
    "e2scrub_all.timer",
    "dpkg-db-backup.timer",
    "prometheus.service",
    "prometheus-node-exporter.service",
    "postgresql.service",
    "podman.service",
    "podman-restart.service",
    "podman-auto-update.timer",
    "podman-auto-update.service",
)
_CONTROLLERS = ("systemd", "unified", "pids", "cpu", "cpuacct", "memory", "devices")
_CGROUPS = Path("/sys/fs/cgroup")
_SECONDS = 60


@functools.cache
def _why_not() -> str:
    if os.geteuid() != 0:
        return "needs root"
    for program in ("systemd-nspawn", "nsenter", "mount"):
        if shutil.which(program) is None:
            return f"no {program}"
    return "" if Path("/lib/systemd/systemd").exists() else "no systemd"


def need_nspawn() -> None:
    """Root, systemd and systemd-container."""
    if why := _why_not():
        missing(f"no booted systemd here: {why}")


class NspawnHost:
    """A booted host; ``leader`` is its first process, seen from outside."""

    def __init__(self, root: Path, process: subprocess.Popen[bytes], leader: int) -> None:
        self._root = root
        self._process = process
        self.leader = leader

    def path(self, inside: str) -> Path:
        """Return a file of the tree that it was booted from."""
        return self._root / inside.lstrip("/")

    def run(self, *command: str, check: bool = True, timeout: float = _SECONDS) -> str:
        """Run a command in it as root; return stdout and stderr."""
        done = subprocess.run(
            [*self.enter(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout.strip()

    def enter(self) -> list[str]:
        """Return the prefix of a command that is to run in it."""
        environ = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
        quiet = ["TERM=dumb", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"]
        return ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--", "env", "-i",
                *environ, *quiet]  # fmt: skip

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit)

    def journal(self, unit: str, *options: str) -> str:
        """What a unit logged, its own lines and systemd's."""
        return self.run("journalctl", "--no-pager", "--quiet", "-o", "cat", "-u", unit, *options)

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file in it."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        subprocess.run(
            [*self.enter(), "sh", "-c", script, "sh", inside, f"{mode:o}"],
            input=text,
            text=True,
            check=True,
            timeout=30,
        )

    def halt(self) -> None:
        """Shut it down, or kill it after 30 s."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)
            self._process.wait(30)


@contextlib.contextmanager
def booted_host(*options: str, install: Path | None = None) -> Iterator[NspawnHost]:
    """Boot a fresh host with loopback only; a Debian package may be installed before the boot."""
    need_nspawn()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="kumadp-box-"))
        stack.callback(folder.rmdir)
        root = _overlay(folder, stack)
        if install is not None:
            shutil.copy(install, root / "root" / install.name)
            in_tree(root, "dpkg", "--install", f"/root/{install.name}")
        console = Path(tempfile.mkstemp(prefix="kumadp-console-")[1])
        stack.callback(console.unlink)
        box = _boot(root, f"b{uuid.uuid4().hex[:8]}", console, stack, options)
        yield box


def _overlay(folder: Path, stack: contextlib.ExitStack) -> Path:
    _mount("-t", "tmpfs", "-o", "size=3G", "kumadp-box", str(folder), stack=stack)
    for name in ("u", "w", "m"):
        (folder / name).mkdir()
    root = folder / "m"
    layers = f"lowerdir=/,upperdir={folder}/u,workdir={folder}/w"
    _mount("-t", "overlay", "kumadp-box", "-o", layers, str(root), stack=stack)
    # Never empty: that would be a first boot, which enables every unit there is.
    (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    # A VM made from a Docker image has it, but what boots here is not a container of Docker.
    (root / ".dockerenv").unlink(missing_ok=True)
    # What cloud-init does at a boot takes seconds; the test of it starts its units itself.
    if (root / "etc/cloud").is_dir():
        (root / "etc/cloud/cloud-init.disabled").touch()
    for unit in _MASKED:
        mask = root / "etc/systemd/system" / unit
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")
    return root


def _mount(*arguments: str, stack: contextlib.ExitStack) -> None:
    subprocess.run(["mount", *arguments], check=True)
    place = next(word for word in reversed(arguments) if word.startswith("/"))
    stack.callback(subprocess.run, ["umount", place], check=True)


def _nspawn(root: Path) -> list[str]:
    return ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={root}", "--console=pipe"]


def in_tree(root: Path, *command: str) -> str:
    """Run a command in a tree that is not booted, with loopback only; return its output."""
    done = subprocess.run(
        [*_nspawn(root), "--private-network", "--resolv-conf=off", "--timezone=off", "--", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _boot(root: Path, name: str, console: Path, stack: contextlib.ExitStack, options: tuple[str, ...]) -> NspawnHost:
    groups = _make_groups(name)
    stack.callback(_remove_groups, groups)

    def join() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [*_nspawn(root), f"--machine={name}", "--private-network", "--system-call-filter=bpf", *options, "--boot"]
    with console.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=join,
        )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def first() -> int:
        assert process.poll() is None, console.read_text(errors="replace")
        pids = children.read_text().split()
        return int(pids[0]) if pids else 0

    box = NspawnHost(root, process, 0)
    stack.callback(box.halt)
    up = {"running", "degraded"}

    def runs() -> bool:
        # The first child of nspawn starts the one that stays.
        box.leader = first()
        return box.leader != 0 and box.run("systemctl", "is-system-running", check=False) in up

    try:
        poll(runs, what="a booted system", deadline=120)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{console.read_text(errors='replace')[-2000:]}") from error
    for controller in _CONTROLLERS[2:]:
        # Its systemd has its own part of them: limits of memory and tasks hold.
        if (_CGROUPS / controller).is_dir():
            place = f"{_CGROUPS}/{controller}"
            subprocess.run([*box.enter()[:3], "-m", "-C", "mount", "-o", "remount,rw,bind", place], check=False)
    box.run("systemctl", "daemon-reexec")
    poll(lambda: box.run("systemctl", "is-system-running", check=False) in up, what="systemd again")
    return box


def _make_groups(name: str) -> list[Path]:
    groups = []
    for controller, own in _own_groups().items():
        group = _CGROUPS / controller / own.lstrip("/") / name
        with contextlib.suppress(OSError):
            group.mkdir(parents=True)
            groups.append(group)
    return groups


def _own_groups() -> dict[str, str]:
    groups: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, place = line.split(":", 2)
        for controller in controllers.split(",") if controllers else ("unified",):
            groups[controller.removeprefix("name=")] = place
    return {name: place for name, place in groups.items() if name in _CONTROLLERS and (_CGROUPS / name).is_dir()}


def _remove_groups(groups: list[Path]) -> None:
    for group in reversed(groups):

        def gone(group: Path = group) -> bool:
            for path in sorted(group.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
            return not group.exists()

        poll(gone, what=f"the end of {group}")
