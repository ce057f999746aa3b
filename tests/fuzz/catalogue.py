"""All targets, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import bootstraps, dns, files, host, http, metrics, resources, xds

if TYPE_CHECKING:
    from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (dns, metrics, bootstraps, xds, resources, http, files, host)
    for target in module.TARGETS
}
