"""Checks and what they found. All run, beside each other, each with a deadline of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kumadp.errors import KumadpError, on_one_line
from kumadp.host.log.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kumadp.errors import Problem

State = Literal["ok", "warning", "failed", "skipped"]
DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, in words, and what to do about it."""

    check: str
    state: State
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at; ``look`` returns findings without the name. ``deadline`` in seconds."""

    name: str
    look: Callable[[], Awaitable[list[Told]]]
    deadline: float = DEADLINE


@dataclass(frozen=True, slots=True)
class Told:
    """What a check found."""

    state: State
    text: str
    hint: str = ""


def ok(text: str) -> list[Told]:
    """All is well."""
    return [Told("ok", text)]


def warning(text: str, hint: str = "") -> list[Told]:
    """It works, but somebody should know."""
    return [Told("warning", text, hint)]


def failed(text: str, hint: str = "") -> list[Told]:
    """It does not work, or would not."""
    return [Told("failed", text, hint)]


def skipped(text: str) -> list[Told]:
    """There is nothing to look at, and why."""
    return [Told("skipped", text)]


def failed_with(error: KumadpError) -> list[Told]:
    """A failure as `run` would end with it, a line for each problem."""
    problems: Sequence[Problem] = getattr(error, "problems", ())
    if problems:
        return [
            Told("failed", f"{problem.path}: {problem.message}" if problem.path else problem.message, problem.hint)
            for problem in problems
        ]
    return failed(error.message, error.hint)


async def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """What all found, in the order of the checks. A check that is too slow, or has a bug, has failed, and only that."""
    found = await asyncio.gather(*(_run(check) for check in checks))
    return [
        Finding(check.name, told.state, on_one_line(redact(told.text)), on_one_line(redact(told.hint)))
        for check, tolds in zip(checks, found, strict=True)
        for told in tolds
    ]


async def _run(check: Check) -> list[Told]:
    try:
        async with asyncio.timeout(check.deadline):
            return await check.look()
    except TimeoutError:
        return failed(f"no result within {check.deadline:g} s")
    except KumadpError as error:
        return failed_with(error)
    except OSError as error:
        return failed(str(error))
    except Exception as error:
        return failed(f"a bug in kumadp: {type(error).__name__}: {error}")
