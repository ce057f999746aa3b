"""Metrics in a run: the socket of Envoy's Prometheus listener, its sources, and the policies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.addresses import LOOPBACK
from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.core.part import Part
from kumadp.core.redirection import may_be_redirected
from kumadp.host.socket_names import kuma_socket, metrics
from kumadp.resources.workload import service_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.bootstrap.prepare import Aggregated
    from kumadp.core.context import Context
    from kumadp.exposition.reader import Piece
    from kumadp.host.net.ports import BindAddress
    from kumadp.metrics.server import MetricsServer, ScrapedApplication
    from kumadp.resources import dynconf_bodies

# Each is a request at every scrape, all at once.
_MOST_APPLICATIONS = 500
# In place of a service (Kuma 2.14 without tags; 3.0 without the label kuma.io/workload).
_NO_SERVICE = "unknown"
# Labels that name the data plane of a sample, by a control plane of 2.13 or newer; kumadp adds them for older ones.
_OWNED_LABELS = ("mesh", "dataplane", "kuma.workload", "kuma_workload", "kuma.proxy_role")


class MetricsPart(Part):
    """Serves the socket that Envoy's Prometheus listener leads to.

    ``admin`` is that of the Envoy that serves, ``coredns`` the address of CoreDNS's metrics, ``own`` the page of
    kumadp's own.
    """

    name = "metrics"

    def __init__(
        self,
        context: Context,
        *,
        admin: Callable[[], AdminAddress | None],
        coredns: Callable[[], BindAddress | None],
        own: Callable[[], Awaitable[tuple[bytes, str]]],
    ) -> None:
        self._context = context
        self._admin = admin
        self._coredns = coredns
        self._own = own
        self._server: MetricsServer | None = None

    async def start(self) -> None:
        """Bind the socket and serve it from now on; raises WorkDirError."""
        from kumadp.metrics.server import MetricsServer, SourceLocator

        context = self._context
        path = kuma_socket(context.work.sockets, metrics(context.name, context.mesh))
        surroundings = SourceLocator(
            applications=self._aggregated,
            envoy=self._envoy,
            coredns=self._coredns,
            own=self._own,
            labels=lambda: self._labels({}),
            sourced=may_be_redirected(context),
            limit=context.settings.metrics_source_limit << 20,
        )
        self._server = MetricsServer(
            path, surroundings, set_warning=self._set_warning, connections=context.status.connections
        )
        context.status.ports["metrics"] = str(path)
        context.stack.start(self._server)

    def status(self) -> Mapping[str, object]:
        """Return the section ``metrics``."""
        return {"metrics": self._server.status()} if self._server is not None else {}

    def exposition(self, seconds: float) -> AsyncIterator[tuple[str, Piece]]:
        """Return what is pushed; as `MetricsServer.read_pieces`."""
        assert self._server is not None  # noqa: S101 - nothing is pushed before this part has been started
        return self._server.read_pieces(seconds)

    @property
    def service(self) -> str:
        """The data plane's service, by its bootstrap; empty if neither this nor the Dataplane names any."""
        fetched = self._context.bootstrap.fetched
        node = (fetched.tree.get("node") if fetched is not None else None) or {}
        cluster = str(node.get("cluster") or "") if isinstance(node, dict) else ""
        if cluster != _NO_SERVICE:
            return cluster
        resource = self._context.resource
        return service_of(resource) if resource is not None else ""

    @property
    def attribute_names(self) -> Mapping[str, str]:
        """Names of the policy's labels by those that they have in an exposition, where they differ."""
        from kumadp.metrics.labels import label_name

        labels = self._server.policy_labels if self._server is not None else {}
        return {label: name for name in labels if (label := label_name(name)) != name}

    async def apply_policy(self, body: dynconf_bodies.MeshMetricBody | None) -> None:
        """Serve by the MeshMetric policies; None: there are none (any more)."""
        if self._server is None:
            return
        if body is None:
            self._server.apply(None)
            return
        from kumadp.metrics.profiles import Selection, SelectionSpec
        from kumadp.metrics.server import ScrapePolicy

        metrics_policy = body.observability.metrics
        sidecar = metrics_policy.sidecar
        profiles = sidecar.profiles if sidecar is not None else None
        wanted = SelectionSpec(
            tuple(profile.name for profile in (profiles and profiles.append_profiles) or ()),
            (profiles and profiles.exclude) or (),
            (profiles and profiles.include) or (),
        )
        policy = ScrapePolicy(
            self._applications(
                ((one.name or "", one.address, one.port, one.path) for one in metrics_policy.applications or ()),
                "MeshMetric",
            ),
            Selection(wanted),
            self._labels(metrics_policy.extra_labels or {}),
            used_only=sidecar is None or not sidecar.include_unused,
        )
        self._server.apply(policy)

    def _aggregated(self) -> tuple[ScrapedApplication, ...]:
        fetched = self._context.bootstrap.fetched
        return self._applications(fetched.aggregate if fetched is not None else (), "the Mesh")

    def _applications(
        self, applications: Iterable[Aggregated | tuple[str, str, int, str]], where: str
    ) -> tuple[ScrapedApplication, ...]:
        from kumadp.metrics.server import ScrapedApplication

        fetched = self._context.bootstrap.fetched
        own = (fetched.address if fetched is not None else "") or self._context.settings.instance_ip or LOOPBACK
        listed = tuple(
            ScrapedApplication(name, address or own, port, path) for name, address, port, path in applications
        )
        self._context.status.set_warning(
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

    def _labels(self, given: Mapping[str, str]) -> Mapping[str, str]:
        if any(name in given for name in _OWNED_LABELS):
            return given
        own = {"mesh": self._context.mesh, "dataplane": self._context.name, "service": self.service}
        return {**{name: value for name, value in own.items() if value}, **given}

    def _set_warning(self, source: str, warning: str) -> None:
        self._context.status.set_warning(f"metrics of {re.sub(r'[^ -~]', '?', source)}", warning)
