"""Findings of the rules for resources, and what they are for all control planes or for that of one version."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec.structs
from msgspec import Struct

from kumadp.errors import Problem
from kumadp.resources.kuma_versions import EVERY, KUMA_3, Versions, listed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kumadp.resources.resource import Resource

# refused: by API and bootstrap. refused-by-api: a bootstrap request of kumadp with it is answered. ignored: accepted,
# without any effect. remark: about something that is the same for each version.
Effect = Literal["refused", "refused-by-api", "ignored", "remark"]
WITHOUT_EFFECT = "has no effect"
_INDEX = re.compile(r"\[\d+\]")


class ResourceFinding(Struct, frozen=True):
    """A problem, and what the control planes of ``versions`` do with it.

    ``quiet``: it matters only to who names the version.
    """

    problem: Problem
    effect: Effect
    versions: Versions = EVERY
    quiet: bool = False


class Judgement(Struct, frozen=True):
    """Problems, which prevent the use of a resource, and notes, which do not."""

    problems: list[Problem]
    notes: list[Problem]


class Findings:
    """Collects the findings for one resource."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._findings: list[ResourceFinding] = []

    def fail(self, path: str, message: str, hint: str = "", by: Versions = EVERY) -> None:
        """Add what the control planes of the versions ``by`` refuse; by default nothing works with it."""
        self._add("refused", path, message, hint, by)

    def fail_in_api(
        self, path: str, message: str, hint: str = "", by: Versions = EVERY, *, quiet: bool = False
    ) -> None:
        """Add what only the API of the control planes refuses."""
        self._add("refused-by-api", path, message, hint, by, quiet=quiet)

    def ignored(self, path: str, hint: str, by: Versions, *, consequence: str = "", quiet: bool = True) -> None:
        """Add what has no effect with the control planes of the versions ``by``."""
        message = f"{WITHOUT_EFFECT}: {consequence}" if consequence else WITHOUT_EFFECT
        self._add("ignored", path, message, hint, by, quiet=quiet)

    def note(self, path: str, message: str, hint: str = "") -> None:
        """Add a remark."""
        self._add("remark", path, message, hint, EVERY)

    def note_for(self, version: Versions, path: str, message: str, hint: str) -> None:
        """Add a remark for who names one of these versions."""
        self._add("remark", path, message, hint, version, quiet=True)

    def _add(self, effect: Effect, path: str, message: str, hint: str, by: Versions, *, quiet: bool = False) -> None:
        file, line = self._resource.where(path)
        self._findings.append(ResourceFinding(Problem(path, message, hint, file, line), effect, by, quiet))

    def for_version(self, version: str) -> Judgement:
        """Return what the API of a control plane of this version refuses, and what it ignores."""
        findings = [msgspec.structs.replace(one, versions=EVERY) for one in self._findings if version in one.versions]
        return Judgement(
            [finding.problem for finding in findings if finding.effect in {"refused", "refused-by-api"}],
            _merged(finding for finding in findings if finding.effect in {"ignored", "remark"}),
        )

    def for_any(self) -> Judgement:
        """Return the problems if each version refuses the resource; what only some refuse are notes that name them."""
        refused = [finding for finding in self._findings if finding.effect == "refused"]
        if not _is_refused_by_every(refused):
            return Judgement([], _merged(finding for finding in self._findings if not finding.quiet))
        # What only the newest version refuses is of no interest to most, unless the others would accept the rest.
        others = [finding for finding in refused if finding.versions != KUMA_3]
        decisive = others if _is_refused_by_every(others) else refused
        return Judgement([_naming_versions(finding) for finding in decisive], [])

    def without_control_plane(self) -> Judgement:
        """Return the problems if each version refuses the resource, and notes that are about no version."""
        if problems := self.for_any().problems:
            return Judgement(problems, [])
        return Judgement([], _merged(one for one in self._findings if not one.quiet and one.versions == EVERY))

    def ignored_by(self, version: str) -> list[Problem]:
        """Return what has no effect with a control plane of this version."""
        return _merged(
            msgspec.structs.replace(finding, versions=EVERY)
            for finding in self._findings
            if finding.effect == "ignored" and version in finding.versions
        )


def _is_refused_by_every(findings: Iterable[ResourceFinding]) -> bool:
    return frozenset().union(*(finding.versions for finding in findings)) == EVERY


def _merged(findings: Iterable[ResourceFinding]) -> list[Problem]:
    """Return one problem for all items of a list that have it: a list may have thousands."""
    first: dict[tuple[str, str, str], Problem] = {}
    more: dict[tuple[str, str, str], int] = {}
    for finding in findings:
        problem = _naming_versions(finding)
        key = (_INDEX.sub("[]", problem.path), problem.message, problem.hint)
        if key in first:
            more[key] = more.get(key, 0) + 1
        else:
            first[key] = problem
    return [
        msgspec.structs.replace(problem, message=f"{problem.message} (and {more[key]} more)")
        if key in more
        else problem
        for key, problem in first.items()
    ]


def _naming_versions(finding: ResourceFinding) -> Problem:
    problem, versions = finding.problem, listed(finding.versions)
    if finding.effect == "refused-by-api":
        return msgspec.structs.replace(problem, message=f"{problem.message}; the API of {versions} refuses that")
    if finding.versions == EVERY:
        return problem
    if finding.effect == "ignored":
        message = problem.message.replace(WITHOUT_EFFECT, f"{WITHOUT_EFFECT} with {versions}", 1)
        return msgspec.structs.replace(problem, message=message)
    verb = "refuses" if len(finding.versions) == 1 else "refuse"
    return msgspec.structs.replace(problem, message=f"{problem.message}; {versions} {verb} that")
