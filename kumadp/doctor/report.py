"""Checks and their results. All checks run concurrently, each with its own deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from kumadp.errors import KumadpError, on_one_line
from kumadp.host.log.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kumadp.errors import Problem

CheckState = Literal["ok", "warning", "failed", "skipped"]
DEADLINE = 10.0


class Finding(Struct, frozen=True):
    """One line of the report: name of the check, state, text, and a hint what to do."""

    check: str
    state: CheckState
    text: str
    hint: str = ""


class DoctorCheck(Struct, frozen=True):
    """A check with its name; ``run`` returns its results, ``deadline`` is in seconds."""

    name: str
    run: Callable[[], Awaitable[list[CheckResult]]]
    deadline: float = DEADLINE


class CheckResult(Struct, frozen=True):
    """One result of a check; a check may have several."""

    state: CheckState
    text: str
    hint: str = ""


def ok(text: str) -> list[CheckResult]:
    """Return the result of a check that found nothing wrong."""
    return [CheckResult("ok", text)]


def warning(text: str, hint: str = "") -> list[CheckResult]:
    """Return the result of a check that found something that works but needs attention."""
    return [CheckResult("warning", text, hint)]


def failed(text: str, hint: str = "") -> list[CheckResult]:
    """Return the result of a check that found something that does not work, or would not."""
    return [CheckResult("failed", text, hint)]


def skipped(text: str) -> list[CheckResult]:
    """Return the result of a check that does not apply, with the reason."""
    return [CheckResult("skipped", text)]


def failed_with(error: KumadpError) -> list[CheckResult]:
    """Return a failure with which `run` would exit, one result for each of its problems."""
    problems: Sequence[Problem] = getattr(error, "problems", ())
    if problems:
        return [
            CheckResult(
                "failed", f"{problem.path}: {problem.message}" if problem.path else problem.message, problem.hint
            )
            for problem in problems
        ]
    return failed(error.message, error.hint)


async def run_checks(checks: Sequence[DoctorCheck]) -> list[Finding]:
    """Run all checks, and return their findings in the order of the checks.

    A check that exceeds its deadline or has a bug fails, without an effect on the others.
    """
    results = await asyncio.gather(*(_run(check) for check in checks))
    return [
        Finding(check.name, result.state, on_one_line(redact(result.text)), on_one_line(redact(result.hint)))
        for check, results_of_check in zip(checks, results, strict=True)
        for result in results_of_check
    ]


async def _run(check: DoctorCheck) -> list[CheckResult]:
    try:
        async with asyncio.timeout(check.deadline):
            return await check.run()
    except TimeoutError:
        return failed(f"no result within {check.deadline:g} s")
    except KumadpError as error:
        return failed_with(error)
    except OSError as error:
        return failed(str(error))
    except Exception as error:
        return failed(f"a bug in kumadp: {type(error).__name__}: {error}")
