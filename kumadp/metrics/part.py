"""Metrics in this run: the socket of Envoy's Prometheus listener, where the sources are, and the policies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.daemon.ports import LOOPBACK
from kumadp.host.socket_names import kuma_socket, metrics
from kumadp.metrics.profiles import Selection, SelectionSpec
from kumadp.metrics.server import MetricsServer, ScrapedApplication, ScrapePolicy, SourceLocator
from kumadp.probes.targets import is_sourced
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.controlplane.bootstrap_messages import Aggregated
    from kumadp.core.context import Run
    from kumadp.daemon.configuration import Configuration
    from kumadp.dns.part import Names
    from kumadp.exposition.reader import Piece
    from kumadp.resources import dynconf_bodies

# Each is a request at every scrape, all at once.
_MOST_APPLICATIONS = 500
# Labels that say of which data plane a sample is, by a control plane of 2.13 or newer; older ones leave it to us.
_TOLD = ("mesh", "dataplane", "kuma.workload", "kuma_workload")


class Metering:
    """Binds the socket (WorkDirError) and serves it from then on.

    ``admin`` is that of the Envoy that serves.
    """

    def __init__(
        self,
        run: Run,
        configuration: Configuration,
        *,
        admin: Callable[[], AdminAddress | None],
        names: Names | None,
    ) -> None:
        self._run = run
        self._configuration = configuration
        self._admin = admin
        settings = run.settings
        spec = run.resource.spec if run.resource is not None else None
        around = SourceLocator(
            applications=self._aggregated,
            envoy=self._envoy,
            coredns=lambda: names.metrics_address if names is not None else None,
            own=run.measuring.page,
            labels=lambda: self._labels({}),
            sourced=is_sourced(settings, spec if isinstance(spec, Dataplane) else None, run.environ),
            limit=settings.metrics_source_limit << 20,
        )
        path = kuma_socket(run.work.sockets, metrics(run.name, run.mesh_name))
        self._server = MetricsServer(path, around, set_warning=self._concern)
        run.status.ports["metrics"] = str(path)
        run.status.asked["metrics"] = self._server.status
        run.stack.start(self._server)

    def said(self, seconds: float) -> AsyncIterator[tuple[str, Piece]]:
        """See `MetricsServer.read_pieces`."""
        return self._server.read_pieces(seconds)

    @property
    def service(self) -> str:
        """The data plane's service, by its bootstrap."""
        fetched = self._configuration.prepared.fetched
        node = (fetched.tree.get("node") if fetched is not None else None) or {}
        return str(node.get("cluster") or "") if isinstance(node, dict) else ""

    async def apply(self, body: dynconf_bodies.MeshMetricBody | None) -> None:
        """Answer by what MeshMetric policies say; None: there are none any more."""
        if body is None:
            self._server.apply(None)
            return
        told = body.observability.metrics
        sidecar = told.sidecar
        profiles = sidecar.profiles if sidecar is not None else None
        wanted = SelectionSpec(
            tuple(profile.name for profile in (profiles and profiles.append_profiles) or ()),
            (profiles and profiles.exclude) or (),
            (profiles and profiles.include) or (),
        )
        policy = ScrapePolicy(
            self._applications(
                ((one.name or "", one.address, one.port, one.path) for one in told.applications or ()), "MeshMetric"
            ),
            Selection(wanted),
            self._labels(told.extra_labels or {}),
            used_only=sidecar is None or not sidecar.include_unused,
        )
        self._server.apply(policy)

    def _aggregated(self) -> tuple[ScrapedApplication, ...]:
        fetched = self._configuration.prepared.fetched
        return self._applications(fetched.aggregate if fetched is not None else (), "the Mesh")

    def _applications(
        self, told: Iterable[Aggregated | tuple[str, str, int, str]], where: str
    ) -> tuple[ScrapedApplication, ...]:
        fetched = self._configuration.prepared.fetched
        own = (fetched.address if fetched is not None else "") or self._run.settings.instance_ip or LOOPBACK
        listed = tuple(ScrapedApplication(name, address or own, port, path) for name, address, port, path in told)
        self._run.status.set_warning(
            f"applications of {where}",
            f"only {_MOST_APPLICATIONS} of {len(listed)} applications are scraped"
            if len(listed) > _MOST_APPLICATIONS
            else "",
        )
        return listed[:_MOST_APPLICATIONS]

    def _envoy(self) -> tuple[str, int] | str | None:
        admin = self._admin()
        if admin is None:
            return None
        return (admin.host, admin.port) if isinstance(admin, TcpAdmin) else admin.path

    def _labels(self, told: Mapping[str, str]) -> Mapping[str, str]:
        if any(name in told for name in _TOLD):
            return told
        own = {"mesh": self._run.mesh_name, "dataplane": self._run.name, "service": self.service}
        return {**{name: value for name, value in own.items() if value}, **told}

    def _concern(self, source: str, concern: str) -> None:
        self._run.status.set_warning(f"metrics of {re.sub(r'[^ -~]', '?', source)}", concern)
