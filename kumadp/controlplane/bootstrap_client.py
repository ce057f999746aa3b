"""The bootstrap request to a Kuma control plane: what it reports, and the token and CA that it uses."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kumadp import __version__
from kumadp.host.log.secrets import register
from kumadp.host.private_file import read_private, write_private
from kumadp.host.work_dir import TOKEN_FILE, reporting_write_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.bootstrap.prepare import Fetched
    from kumadp.controlplane.bootstrap_http import Trust
    from kumadp.errors import ControlPlaneUnavailable
    from kumadp.host.work_dir import WorkDir
    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.controlplane")

_LONGEST_TOKEN = 1 << 20  # bytes


class Sidecar(Struct, frozen=True):
    """What the bootstrap request reports of this sidecar beside settings and Dataplane.

    ``dns_port``: of Envoy's DNS filter, None: DNS is off; ``resolves``: the embedded resolver answers names.
    ``serves_probes``: kumadp serves the virtual probes, so ``probes`` is not sent: the control plane would make Envoy
    bind the same port. ``transparent``: what is redirected on this host, if configured. ``otel_env``: what is
    reported of OpenTelemetry's variables, None: its pipe is not offered.
    """

    dns_port: int | None = None
    resolves: bool = False
    serves_probes: bool = False
    transparent: TransparentProxy | None = None
    otel_env: dict[str, Any] | None = None


class Versions(Struct, frozen=True):
    """Versions that the bootstrap request reports. ``compatible``: Kuma ships with this Envoy."""

    envoy: str
    envoy_build: str = ""
    compatible: bool = True
    coredns: str = ""


class KumaClient:
    """Requests the bootstrap of one data plane from a Kuma control plane, 2.8 to 3.0.

    ``settings``, ``resource`` and ``versions`` may be replaced between two requests. ``counted`` has the attempts:
    ``attempts`` and ``answered``. ``on_token`` is called with each token that was read, in the thread that read it.
    """

    def __init__(
        self,
        settings: Settings,
        resource: Resource | None,
        work: WorkDir,
        versions: Versions,
        sidecar: Sidecar,
        on_token: Callable[[str], object] = lambda _token: None,
    ) -> None:
        self.settings = settings
        self.resource = resource
        self.versions = versions
        self.counted = collections.Counter[str]()
        self._work = work
        self._sidecar = sidecar
        self._on_token = on_token
        self._trust_notes: tuple[str, ...] = ()
        self.on_connected: Callable[[], object] = lambda: None
        """Called each time that a request is about to be sent."""
        self._on_answer: list[Callable[[Fetched], object]] = []

    def on_answer(self, callback: Callable[[Fetched], object]) -> None:
        """Have ``callback`` called with each bootstrap, before `fetch` returns it."""
        self._on_answer.append(callback)

    def with_facts(self, settings: Settings, resource: Resource | None, versions: Versions) -> KumaClient:
        """Return a client that reports these; counts and callbacks are shared."""
        other = copy.copy(self)
        other.settings, other.resource, other.versions = settings, resource, versions
        return other

    async def fetch(
        self, failed: Callable[[ControlPlaneUnavailable], None], max_duration: float | None, *, once: bool = False
    ) -> Fetched:
        """Request until there is an answer; ``failed`` is called with each failure.

        Raises ControlPlaneRefused, BootstrapError, and ControlPlaneUnavailable after ``max_duration`` seconds, or if
        each address has failed ``once``.
        """
        from kumadp.controlplane.bootstrap_http import fetch_bootstrap

        resource = self.resource

        async def request() -> tuple[bytes, Trust]:
            self.counted["attempts"] += 1
            return await asyncio.to_thread(self._request)

        answer = await fetch_bootstrap(
            self.settings.cp_addresses,
            request,
            backoff=self.settings.retry_backoff,
            max_duration=max_duration,
            on_failure=failed,
            once=once,
            advise=self.advise,
            on_connected=lambda: self.on_connected(),
        )
        self.counted["answered"] += 1
        from kumadp.bootstrap.parser import parse_bootstrap
        from kumadp.bootstrap.prepare import Fetched
        from kumadp.resources.wire import digest

        tree = await asyncio.to_thread(parse_bootstrap, answer.bootstrap)
        fetched = Fetched(
            tree,
            answer.corefile_template,
            time.time(),
            answer.url,
            answer.address,
            answer.aggregate,
            await asyncio.to_thread(digest, resource),
        )
        for callback in self._on_answer:
            callback(fetched)
        return fetched

    def advise(self, status: int, text: str) -> str:
        """Return what to change in the Dataplane after a rejection with this text; an empty text if it is not known.

        ``status`` is that of HTTP, 0 for one of the stream.
        """
        from kumadp.resources.rejections import advise
        from kumadp.resources.types import PROXY_TYPES

        resource = self.resource
        return advise(status, text, resource, PROXY_TYPES[resource.kind] if resource else self.settings.proxy_type)

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
            self._on_token(token)
        return token

    def read_token(self) -> str:
        """As `token`, without calling ``on_token``."""
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
        from kumadp.host.facts import has_ipv6, memory_limit, system_ca_path
        from kumadp.resources.types import PROXY_TYPES

        settings, resource = self.settings, self.resource
        versions, sidecar = self.versions, self._sidecar
        token = self.token()
        trust = self.trust()
        metadata = {"version.dependencies.coredns": versions.coredns} if versions.coredns else {}
        if settings.host_ip:
            metadata["HOST_IP"] = settings.host_ip
        transparent = sidecar.transparent
        facts = RequestFacts(
            mesh=resource.mesh if resource else settings.mesh,
            name=resource.name if resource else settings.name,
            proxy_type=PROXY_TYPES[resource.kind] if resource else settings.proxy_type,
            token=token,
            token_path=self._token_file(token),
            resource=self._resource_json(resource) if resource else "",
            kumadp_version=__version__,
            envoy_version=versions.envoy,
            envoy_build=versions.envoy_build,
            envoy_compatible=versions.compatible,
            ca_cert=trust.ca,
            metadata=metadata,
            dns_port=sidecar.dns_port or 0,
            readiness_port=settings.readiness_port,
            features=announced_features(
                settings,
                transparent=transparent is not None,
                resolves=sidecar.resolves,
                pipe=sidecar.otel_env is not None,
            ),
            max_heap_bytes=settings.max_memory_bytes or memory_limit(),
            workdir=str(self._work.sockets),
            metrics_cert_path=settings.metrics_cert_path,
            metrics_key_path=settings.metrics_key_path,
            system_ca_path=settings.system_ca_path or system_ca_path(),
            ipv6_enabled=settings.ipv6_enabled and has_ipv6(),
            spire_socket_path=settings.spire_socket_path,
            app_probe_proxy=settings.application_probe_proxy_port > 0,
            otel_env=sidecar.otel_env,
            transparent_proxy=self._redirected(transparent) if transparent is not None else None,
        )
        return encode_request(facts), trust

    def _resource_json(self, resource: Resource) -> str:
        from kumadp.resources.wire import request_json

        return request_json(resource, without=frozenset({"probes"} if self._sidecar.serves_probes else ()))

    def _redirected(self, transparent: TransparentProxy) -> dict[str, Any]:
        from kumadp.resources.transparent_proxy import Redirected

        dns = Redirected(enabled=self._sidecar.dns_port is not None, port=self.settings.envoy_dns_port)
        return transparent.wire(dns)
