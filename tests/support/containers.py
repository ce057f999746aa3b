"""Containers of the tests' own: podman and runc with a storage that goes away, and no network but a container's own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.needs import missing
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

# Without these limits podman requests more than a root without CAP_SYS_RESOURCE may have.
_CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:20000", "nproc=4096:4096"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_SUITE = "bookworm"
_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
# Installed in the base, as the official image of Python has it: pip, and its links in /usr/local/bin.
_BASE = [
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    # Already merged: the package that would do it brings Perl.
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    '--setup-hook=mkdir -p "$1"/etc/apt/preferences.d',
    '--setup-hook=printf "Package: usrmerge\\nPin: release *\\nPin-Priority: -1\\n" >"$1"/etc/apt/preferences.d/no',
    "--include=usr-is-merged,python3,python3-pip,python3-venv,ca-certificates",
    '--aptopt=Apt::Install-Recommends "false"',
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "python-wheels")),
    '--customize-hook=rm -f "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED "$1"/etc/resolv.conf "$1"/etc/hostname',
    '--customize-hook=for n in python python3; do ln -sf /usr/bin/python3.11 "$1/usr/local/bin/$n"; done',
    '--customize-hook=ln -sf /usr/bin/pip3 "$1/usr/local/bin/pip"',
    # A build takes its own from the index.
    '--customize-hook=cd "$1"/usr/lib/python3/dist-packages && rm -rf setuptools pkg_resources',
    # Containers trust the same authorities and use the same proxies as this host.
    '--customize-hook=cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"',
    '--customize-hook=[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$1/etc/"',
    _SUITE,
    "-",
    str(_SOURCES),
]


@functools.cache
def _why_not() -> str:
    if os.geteuid() != 0:
        return "needs root"
    for program in ("podman", "runc", "mmdebstrap"):
        if shutil.which(program) is None:
            return f"no {program}"
    return "" if _SOURCES.exists() else f"no {_SOURCES}"


def need_podman() -> None:
    """Root, podman, runc, and mmdebstrap with a host's sources of Debian for the base image."""
    if why := _why_not():
        missing(f"no containers here: {why}")


class Podman:
    """podman with separate storage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "containers.conf").write_text(_CONTAINERS)
        storage = f'[storage]\ndriver = "overlay"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
        (folder / "storage.conf").write_text(storage)
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }

    def start(self, *arguments: str, timeout: float = 60, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run podman to its end."""
        return subprocess.run(
            ["podman", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout,
            cwd=cwd,
            check=False,
        )

    def run(self, *arguments: str, timeout: float = 60, cwd: Path | None = None) -> str:
        """Run podman, which must succeed; its standard output."""
        done = self.start(*arguments, timeout=timeout, cwd=cwd)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def inspect(self, what: str) -> dict[str, Any]:
        """What podman knows of an image or a container."""
        (description,) = json.loads(self.run("inspect", what))
        assert isinstance(description, dict)
        return description

    def make_base(self, tag: str) -> None:
        """Build a replacement for the slim Python image from Debian's Python 3.11, so that no registry is needed."""
        with subprocess.Popen(_BASE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as archive:
            changes = ("-c", "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "-c",
                       "ENV LANG=C.UTF-8", "-c", 'CMD ["python3"]')  # fmt: skip
            done = subprocess.run(
                ["podman", "import", "--quiet", *changes, "-", tag],
                stdin=archive.stdout,
                capture_output=True,
                env=self.environment,
                timeout=300,
                check=False,
            )
            errors = archive.communicate()[1]
        assert (archive.returncode, done.returncode) == (0, 0), (errors + done.stderr).decode(errors="replace")

    def _end(self) -> None:
        self.start("rm", "--all", "--force", "--time=0")
        parents = list(Path("/sys/fs/cgroup").glob("**/libpod_parent"))
        for mounted in sorted(_mounted_below(self._folder), reverse=True):
            subprocess.run(["umount", mounted], check=True)
        for group in parents:
            # Another run's may be in use.
            for place in (group / "conmon", group):
                with contextlib.suppress(OSError):
                    place.rmdir()


class Container:
    """A running container."""

    def __init__(self, podman: Podman, name: str) -> None:
        self._podman = podman
        self.name = name

    def run(self, *command: str, user: str = "") -> str:
        """Run something in it, which must succeed."""
        return self._podman.run("exec", *((f"--user={user}",) if user else ()), self.name, *command)

    def try_run(self, *command: str) -> int:
        """Run something in it; its exit code."""
        return self._podman.start("exec", self.name, *command).returncode

    def fetch(self, url: str) -> str:
        """What a GET within it answers; there is no curl."""
        script = "import sys, urllib.request as http; print(http.urlopen(sys.argv[1], timeout=10).read().decode())"
        return self.run("python3", "-c", script, url)

    def log(self) -> str:
        """Return its output so far."""
        done = self._podman.start("logs", self.name)
        return done.stdout + done.stderr

    def logged(self, text: str) -> None:
        """Wait until its output contains this."""
        try:
            poll(lambda: text in self.log(), what=text)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from error

    def health(self) -> int:
        """Run its health check: the exit code. Its timer would need systemd."""
        return self._podman.start("healthcheck", "run", self.name).returncode

    def signal(self, name: str) -> None:
        """Send its first process a signal."""
        self._podman.run("kill", f"--signal={name}", self.name)

    def stop(self) -> int:
        """Stop it as an orchestrator does: its stop signal, and KILL only after a minute; its exit code."""
        self._podman.run("stop", "--time=60", self.name, timeout=90)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return int(self._podman.run("wait", self.name))


@contextlib.contextmanager
def podman() -> Iterator[Podman]:
    """podman with a storage that goes in the end, with all containers."""
    need_podman()
    folder = Path(tempfile.mkdtemp(prefix="kumadp-podman-"))
    running = Podman(folder)
    try:
        yield running
    finally:
        running._end()
        shutil.rmtree(folder)


def _mounted_below(folder: Path) -> list[str]:
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{folder}/")]
