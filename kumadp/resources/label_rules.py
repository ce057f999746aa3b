"""Rules for labels, which the API of Kuma checks, but no bootstrap (seen with 2.8.8, 2.13.5, 2.14.3 and 3.0)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.resources.kuma_versions import KUMA_3, SINCE_2_13
from kumadp.resources.parse import join
from kumadp.resources.workload import WORKLOAD_LABEL

if TYPE_CHECKING:
    from kumadp.resources.findings import Findings
    from kumadp.resources.resource import Resource
    from kumadp.resources.types import Networking

MESH = "kuma.io/mesh"
# Names and values as in Kubernetes (metadata.labels).
_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_WORKLOAD = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def check_workload(resource: Resource, networking: Networking, findings: Findings) -> None:
    """Check that Kuma 3.0 makes a MeshService for a Dataplane, of the name that Kuma 2 gives it.

    3.0 makes one for each label ``kuma.io/workload``, and none without; 2.13 and 2.14 for each tag ``kuma.io/service``
    (seen with Dataplanes of each kind and the generator of MeshServices).
    """
    label, inbounds = resource.labels.get(WORKLOAD_LABEL, ""), networking.inbound
    services = {inbound.service for inbound in inbounds if inbound.service}
    if inbounds and not label:
        message = "is missing: the control plane makes no MeshService, and metrics have no service"
        hint = f"write {min(services)}" if services else "write the name of the service"
        findings.note_for(KUMA_3, join("labels", WORKLOAD_LABEL), message, hint)
    elif label and services and label not in services:
        message = f"is {label}: the MeshService has this name, and not that of the tag, {min(services)}, as in Kuma 2"
        findings.note_for(KUMA_3, join("labels", WORKLOAD_LABEL), message, f"write {min(services)}")


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
