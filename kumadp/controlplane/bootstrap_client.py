"""A Kuma control plane as the source of the bootstrap: the request, the answer, the last good one while it is away."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kumadp import __version__
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.host.log.secrets import register
from kumadp.host.private_file import read_private, write_private
from kumadp.host.work_dir import TOKEN_FILE, reporting_write_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.controlplane.bootstrap_http import Trust
    from kumadp.controlplane.bootstrap_messages import Aggregated
    from kumadp.daemon.ports import DnsPlan
    from kumadp.envoy.version import EnvoyVersion
    from kumadp.host.work_dir import WorkDir
    from kumadp.resources.load import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.controlplane")

_LONGEST_TOKEN = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """A bootstrap as the control plane at ``url`` made it; ``at`` in seconds since 1970.

    ``address`` is the data plane's, as the control plane knows it; empty in those from before this kumadp.
    ``aggregate``: applications whose metrics are scraped, the way from before MeshMetric.
    """

    tree: dict[str, Any]
    corefile_template: str | None
    at: float
    url: str = ""
    address: str = ""
    aggregate: tuple[Aggregated, ...] = ()


class KumaClient:
    """Asks a Kuma control plane, 2.8 to 2.14, for the bootstrap of one data plane.

    ``settings``, ``resource`` and ``versions`` may be replaced between two requests. Where kumadp serves the virtual
    probes itself, ``probes`` is not sent: the control plane would make Envoy bind the same port. ``transparent`` is
    what is redirected on this host, where the settings say so; ``otel_env`` what is told of OpenTelemetry's variables,
    None where its pipe is not offered.
    """

    def __init__(
        self,
        settings: Settings,
        resource: Resource | None,
        work: WorkDir,
        dns: DnsPlan | None,
        versions: tuple[EnvoyVersion, str],
        *,
        serves_probes: bool,
        transparent: TransparentProxy | None = None,
        otel_env: dict[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.resource = resource
        self._work = work
        self._dns = dns
        self.versions = versions
        self._transparent = transparent
        self._otel_env = otel_env
        self._trust_notes: tuple[str, ...] = ()
        self.counted = collections.Counter[str]()
        """Attempts at a bootstrap: ``attempts`` and ``answered``."""
        self.heard_token: Callable[[str], object] = lambda _token: None
        """Hears each token that was read, in the thread that read it."""
        self._without = frozenset({"probes"}) if serves_probes else frozenset[str]()

    async def fetch(self, failed: Callable[[str], None], max_duration: float | None) -> Fetched:
        """Ask until there is an answer; ``failed`` hears why there is none yet.

        Raises ControlPlaneRefused, ControlPlaneUnavailable after ``max_duration`` seconds, BootstrapError.
        """
        from kumadp.controlplane.bootstrap_http import fetch_bootstrap

        async def request() -> tuple[bytes, Trust]:
            self.counted["attempts"] += 1
            return await asyncio.to_thread(self._request)

        answer = await fetch_bootstrap(
            self.settings.cp_addresses,
            request,
            backoff=self.settings.retry_backoff,
            max_duration=max_duration,
            on_failure=failed,
        )
        self.counted["answered"] += 1
        tree = await asyncio.to_thread(parse_bootstrap, answer.bootstrap)
        return Fetched(tree, answer.corefile_template, time.time(), answer.url, answer.address, answer.aggregate)

    def trust(self) -> Trust:
        """The CA as it is now. May block. Raises ControlPlaneRefused."""
        from kumadp.controlplane.trust import read_trust

        trust, notes = read_trust(self.settings)
        if notes != self._trust_notes:
            self._trust_notes = notes
            for note in notes:
                log.warning("%s", note)
        return trust

    def token(self) -> str:
        """The token as it is now, empty without one. May block. Raises ControlPlaneRefused."""
        token = self.read_token()
        if token:
            self.heard_token(token)
        return token

    def read_token(self) -> str:
        """As `token`, and nobody hears of it."""
        from kumadp.controlplane.token import check_token, read_token

        settings = self.settings
        if settings.token:
            return check_token(settings.token.strip(), "the token")
        if settings.token_path:
            token = read_token(Path(settings.token_path))
            register(token)
            return token
        return ""

    def _token_file(self, token: str) -> str:
        """Where Envoy finds the token too. May block. Raises WorkDirError."""
        if not self.settings.token:
            return self.settings.token_path
        path = self._work.path / TOKEN_FILE
        self._work.removed_at_end.add(path)
        with contextlib.suppress(OSError):
            # A disk that is full by now costs nothing where it is there already.
            if read_private(path, _LONGEST_TOKEN) == token.encode():
                return str(path)
        with reporting_write_errors(path):
            write_private(path, token.encode())
        return str(path)

    def _request(self) -> tuple[bytes, Trust]:
        from kumadp.controlplane.bootstrap_messages import RequestFacts, encode_request
        from kumadp.controlplane.features import announced_features
        from kumadp.envoy.version import is_supported
        from kumadp.host.facts import has_ipv6, memory_limit, system_ca_path
        from kumadp.resources.transparent_proxy import Redirected
        from kumadp.resources.types import PROXY_TYPES
        from kumadp.resources.wire import request_json

        settings, resource = self.settings, self.resource
        envoy, coredns = self.versions
        token = self.token()
        trust = self.trust()
        metadata = {"version.dependencies.coredns": coredns} if coredns else {}
        if settings.host_ip:
            metadata["HOST_IP"] = settings.host_ip
        transparent = self._transparent
        dns = Redirected(enabled=self._dns is not None, port=settings.envoy_dns_port)
        facts = RequestFacts(
            mesh=resource.mesh if resource else settings.mesh,
            name=resource.name if resource else settings.name,
            proxy_type=PROXY_TYPES[resource.kind] if resource else settings.proxy_type,
            token=token,
            token_path=self._token_file(token),
            resource=request_json(resource, without=self._without) if resource else "",
            kumadp_version=__version__,
            envoy_version=envoy.version,
            envoy_build=envoy.build,
            envoy_compatible=is_supported(envoy.version),
            ca_cert=trust.ca,
            metadata=metadata,
            dns_port=self._dns.envoy_port if self._dns is not None else 0,
            readiness_port=settings.readiness_port,
            features=announced_features(
                settings,
                transparent=transparent is not None,
                resolves=self._dns is not None and self._dns.coredns is None,
                pipe=self._otel_env is not None,
            ),
            max_heap_bytes=settings.max_memory_bytes or memory_limit(),
            workdir=str(self._work.sockets),
            metrics_cert_path=settings.metrics_cert_path,
            metrics_key_path=settings.metrics_key_path,
            system_ca_path=settings.system_ca_path or system_ca_path(),
            ipv6_enabled=settings.ipv6_enabled and has_ipv6(),
            spire_socket_path=settings.spire_socket_path,
            app_probe_proxy=settings.application_probe_proxy_port > 0,
            otel_env=self._otel_env,
            transparent_proxy=transparent.wire(dns) if transparent is not None else None,
        )
        return encode_request(facts), trust
