"""All checks run; one that hangs or has a bug does not affect the others."""

from __future__ import annotations

import asyncio

from kumadp.doctor.report import CheckResult, DoctorCheck, ok, run_checks, warning
from kumadp.errors import Problem, SettingsError, WorkDirError
from kumadp.host.log.secrets import register


async def hangs() -> list[CheckResult]:
    await asyncio.Event().wait()
    return []


async def broken() -> list[CheckResult]:
    raise ValueError("oops")


async def refused() -> list[CheckResult]:
    raise SettingsError([Problem("--a", "is wrong", "write b"), Problem("--c", "too")])


async def unusable() -> list[CheckResult]:
    raise WorkDirError("/x is taken", "choose another")


async def leaks() -> list[CheckResult]:
    register("a-secret-of-some-length")
    return [*ok("a-secret-of-some-length\x1b[31m"), *warning("second")]


def test_each_finding_in_order() -> None:
    checks = [
        DoctorCheck("hangs", hangs, 0.05),
        DoctorCheck("broken", broken),
        DoctorCheck("refused", refused),
        DoctorCheck("dir", unusable),
    ]
    results = asyncio.run(run_checks([*checks, DoctorCheck("leaks", leaks)]))
    assert [(item.check, item.state, item.text, item.hint) for item in results] == [
        ("hangs", "failed", "no result within 0.05 s", ""),
        ("broken", "failed", "a bug in kumadp: ValueError: oops", ""),
        ("refused", "failed", "--a: is wrong", "write b"),
        ("refused", "failed", "--c: too", ""),
        ("dir", "failed", "/x is taken", "choose another"),
        ("leaks", "ok", "***\\x1b[31m", ""),
        ("leaks", "warning", "second", ""),
    ]
