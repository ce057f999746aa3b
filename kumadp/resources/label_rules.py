"""Rules for labels, which the API of Kuma checks, but no bootstrap (seen with 2.8.8, 2.13.5 and 2.14.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.resources.kuma_versions import SINCE_2_13
from kumadp.resources.parse import join
from kumadp.resources.workload import WORKLOAD_LABEL

if TYPE_CHECKING:
    from kumadp.resources.findings import Findings
    from kumadp.resources.resource import Resource

MESH = "kuma.io/mesh"
# Names and values as in Kubernetes (metadata.labels).
_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_WORKLOAD = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def check_labels(resource: Resource, findings: Findings) -> None:
    """Check the labels of a resource."""
    for name, value in resource.labels.items():
        path = join("labels", name)
        prefix, _, part = name.rpartition("/")
        if not _PART.fullmatch(part) or ("/" in name and not _PREFIX.fullmatch(prefix)):
            findings.fail_in_api(path, "is not a valid label name", "letters, digits and . _ -, at most 63")
        if value and not _PART.fullmatch(value):
            findings.fail_in_api(path, f"{value!r} is not a valid label value", "letters, digits and . _ -, at most 63")
    if resource.mesh and resource.labels.get(MESH, resource.mesh) != resource.mesh:
        findings.fail_in_api(join("labels", MESH), f"is not the mesh {resource.mesh}", "remove it", SINCE_2_13)
    workload = resource.labels.get(WORKLOAD_LABEL, "")
    if workload and not _WORKLOAD.fullmatch(workload):
        hint = "lower-case letters, digits and -, at most 63"
        findings.fail_in_api(join("labels", WORKLOAD_LABEL), f"{workload!r} is not a workload's name", hint, SINCE_2_13)
