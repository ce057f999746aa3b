"""The versions of Envoy and CoreDNS, which the bootstrap request reports."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kumadp.controlplane.bootstrap_client import Versions
from kumadp.core.part import Part
from kumadp.envoy.version import is_supported

if TYPE_CHECKING:
    from kumadp.core.context import Context
    from kumadp.dns.part import DnsPart
    from kumadp.envoy.part import EnvoyPart
    from kumadp.envoy.version import EnvoyVersion

log = logging.getLogger("kumadp.daemon")


class ProgramVersionsPart(Part):
    """Runs the programs for their versions, both at once."""

    name = "program versions"
    versions: Versions

    def __init__(self, context: Context, envoy: EnvoyPart, dns: DnsPart) -> None:
        self._context = context
        self._envoy = envoy
        self._dns = dns

    async def start(self) -> None:
        """Note the versions; raises KumadpError if Envoy does not print one."""
        envoy, coredns = await asyncio.gather(self._envoy.version(), self._dns.version())
        self._context.status.facts["versions"] = {"envoy": envoy.version, "coredns": coredns}
        text = f", CoreDNS {coredns}" if coredns else ""
        log.info("Envoy %s at %s%s", envoy.version, self._envoy.program, text)
        self.versions = reported(envoy, coredns)

    def note_envoy(self, envoy: EnvoyVersion) -> Versions:
        """Return the versions with another Envoy's."""
        return reported(envoy, self.versions.coredns)


def reported(envoy: EnvoyVersion, coredns: str) -> Versions:
    """Return these versions as the bootstrap request reports them."""
    return Versions(envoy.version, envoy.build, compatible=is_supported(envoy.version), coredns=coredns)
