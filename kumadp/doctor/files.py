"""Checks of the token, and of the permissions of files and directories."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.controlplane.token import check_token, claims_of, expires_at, read_token
from kumadp.doctor.report import CheckResult, failed, ok, skipped, warning
from kumadp.errors import KumadpError
from kumadp.host.log.secrets import register
from kumadp.host.state_dir import state_dir_path
from kumadp.host.work_dir import check_private
from kumadp.settings.values import format_elapsed

if TYPE_CHECKING:
    from kumadp.doctor.subject import Subject

# A token that expires within this time is worth a warning (seconds).
_SOON = 3600.0


async def token(subject: Subject) -> list[CheckResult]:
    """Check the token, its data plane and its expiry; only the control plane can verify its signature."""
    settings = subject.settings
    if subject.mesh is not None:
        return skipped("standalone: no token is needed")
    if not settings.token and not settings.token_path:
        return warning("no token is given", "a control plane with authentication requires --dataplane-token-file")
    if settings.token:
        text = check_token(settings.token.strip(), "the token")
    else:
        text = await asyncio.to_thread(read_token, Path(settings.token_path))
    register(text)
    return _check_claims(subject, text, time.time())


def _check_claims(subject: Subject, text: str, now: float) -> list[CheckResult]:
    claims, results = claims_of(text), list[CheckResult]()
    # Kuma's data plane tokens have the claims Name and Mesh, each empty for any; zone tokens have Zone (Kuma 2.8).
    for key, ours in (("Mesh", subject.mesh_name), ("Name", subject.name)):
        claim = claims.get(key)
        if claim and ours and claim != ours:
            text = f"the token is for {key.lower()} {claim}, but this data plane has {key.lower()} {ours}"
            results += failed(text, "generate one for this data plane")
    begins, ends = claims.get("nbf"), expires_at(text)
    if isinstance(begins, int | float) and begins > now:
        results += failed(f"the token becomes valid only in {format_elapsed(begins - now)}", "is the clock right?")
    if ends is not None and ends <= now:
        results += failed(
            f"the token expired {format_elapsed(now - ends)} ago", "generate one: kumactl generate dataplane-token"
        )
    elif ends is not None and ends - now < _SOON:
        results += warning(
            f"the token expires in {format_elapsed(ends - now)}", "renew the file: it is read for each connection"
        )
    until = f"until {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(ends))}" if ends is not None else "forever"
    holder = ", ".join(f"{name.lower()} {claims[name]}" for name in ("Mesh", "Name", "Zone") if claims.get(name))
    return results or ok(f"for {holder or 'any data plane'}, valid {until}")


async def modes(subject: Subject) -> list[CheckResult]:
    """Check that files can be read, and secret ones only by this user."""
    return await asyncio.to_thread(_modes, subject)


def _modes(subject: Subject) -> list[CheckResult]:
    settings = subject.settings
    results: list[CheckResult] = []
    for path, flag, secret in (
        (settings.token_path, "--dataplane-token-file", True),
        (settings.ca_cert_file, "--ca-cert-file", False),
        (settings.metrics_key_path, "KUMA_DATAPLANE_RUNTIME_METRICS_KEY_PATH", True),
    ):
        if path:
            results += _file(Path(path), flag, secret=secret)
    runtime = subject.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    work = Path(settings.work_dir or runtime or f"/run/kumadp/{subject.name or 'default'}")
    state = state_dir_path(subject.name, settings.state_dir, subject.environ)
    for folder, setting in ((work, "--work-dir"), (state, "--state-dir")):
        if folder is not None:
            results += _folder(folder, setting)
    return results or ok("files and directories are as they should be")


def _file(path: Path, flag: str, *, secret: bool) -> list[CheckResult]:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return failed(f"{flag} {path}: {error.strerror}")
    if not os.access(path, os.R_OK):
        return failed(f"{flag} {path} cannot be read by this user")
    if secret and mode & (stat.S_IROTH | stat.S_IWOTH):
        return failed(f"{flag} {path} can be read by everybody", f"chmod 600 {path}")
    if mode & stat.S_IWOTH:
        return failed(f"{flag} {path} can be changed by everybody", f"chmod go-w {path}")
    return []


def _folder(path: Path, setting: str) -> list[CheckResult]:
    if not path.exists():
        parent = next(parent for parent in path.parents if parent.exists())
        if parent.is_dir() and os.access(parent, os.W_OK):
            return []
        return warning(f"{path} does not exist and cannot be created", f"choose another one with {setting}")
    try:
        check_private(path, setting)
    except KumadpError as error:
        return failed(error.message, error.hint)
    if not path.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
        # Nobody else can reach the files in it.
        return []
    open_to_others = [file for file in path.glob("*") if file.is_file() and file.stat().st_mode & 0o077]
    return [CheckResult("failed", f"{file} can be read by others", f"chmod 600 {file}") for file in open_to_others]
