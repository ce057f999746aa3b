"""An Envoy that serves dynamic configuration as a control plane has it do, its listener from a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.xds.envoy import DirectEnvoy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.xds.resources import Tree

SOCKET = "kuma-mesh-metric-config.sock"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"


def etag_of(body: str) -> str:
    """As Kuma 2.11 and later make it: SHA-256 in hexadecimal, no quotes."""
    return hashlib.sha256(body.encode()).hexdigest()


def _respond(status: int, body: str = "") -> Tree:
    return {"status": status, **({"body": {"inlineString": body}} if body else {})}


def with_etags(bodies: Mapping[str, str]) -> list[Tree]:
    """Routes of Kuma 2.11 to 2.14: two a path, the first of them for who has the body already."""
    routes: list[Tree] = []
    for path, body in bodies.items():
        etag = etag_of(body)
        unchanged = {"name": "If-None-Match", "stringMatch": {"exact": etag}}
        routes.append({"match": {"path": path, "headers": [unchanged]}, "directResponse": _respond(304)})
        routes.append(
            {
                "match": {"path": path},
                "directResponse": _respond(200, body),
                "responseHeadersToAdd": [{"header": {"key": "Etag", "value": etag}}],
            }
        )
    return routes


def without(body: str) -> list[Tree]:
    """The route of Kuma 2.8 to 2.10: one body for every path."""
    return [{"match": {"prefix": "/"}, "directResponse": _respond(200, body)}]


def dynconf_listener(socket: Path, routes: list[Tree], largest: int = 10 << 20) -> Tree:
    """The listener `_kuma:dynamicconfig`."""
    manager = {
        "@type": _MANAGER,
        "statPrefix": "_kuma_dynamicconfig",
        "routeConfig": {
            "virtualHosts": [{"name": "_kuma:dynamicconfig", "domains": ["*"], "routes": routes}],
            "maxDirectResponseBodySizeBytes": largest,
        },
        "httpFilters": [{"name": "envoy.filters.http.router", "typedConfig": {"@type": _ROUTER}}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typedConfig": manager}]}
    return {
        "@type": _LISTENER,
        "name": "_kuma:dynamicconfig",
        "address": {"pipe": {"path": str(socket)}},
        "filterChains": [chain],
    }


class DynconfEnvoy:
    """A real Envoy; what it serves is changed with `serve` while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / SOCKET
        self._file, self._version = folder / "listeners.json", 0
        self._write([])
        source: dict[str, Any] = {"pathConfigSource": {"path": str(self._file)}, "resourceApiVersion": "V3"}
        (admin,) = free_ports(1)
        self.envoy = DirectEnvoy(
            folder,
            {
                "node": {"id": "default.web", "cluster": "web"},
                "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": admin}}},
                "dynamicResources": {"ldsConfig": source},
            },
        )

        # As kumadp and kuma-dp run it.
        self.envoy.arguments += ("--drain-strategy", "immediate")

    def start(self) -> None:
        self.envoy.start()
        self.envoy.wait_live()

    def serve(self, routes: list[Tree] | None) -> None:
        """Serve these routes, None: no listener any more. Returns once Envoy has taken it."""
        self._write([] if routes is None else [dynconf_listener(self.socket, routes)])
        poll(self._taken, what="the listener")

    def _taken(self) -> bool:
        stats = self.envoy.stats("listener_manager.lds")
        assert not stats.get("listener_manager.lds.update_rejected"), self.envoy.log.read_text()[-1000:]
        return bool(stats.get("listener_manager.lds.version_text") == f"v{self._version}")

    def _write(self, listeners: list[Tree]) -> None:
        self._version += 1
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"versionInfo": f"v{self._version}", "resources": listeners}))
        fresh.rename(self._file)

    def kill(self) -> None:
        self.envoy.kill()

    def requests(self) -> int:
        """How many requests it has had at the socket."""
        return int(self.envoy.stats("http._kuma_dynamicconfig").get("http._kuma_dynamicconfig.downstream_rq_total", 0))

    def connections(self) -> int:
        """How many connections it has had there."""
        name = "http._kuma_dynamicconfig.downstream_cx_total"
        return int(self.envoy.stats("http._kuma_dynamicconfig").get(name, 0))


@contextlib.contextmanager
def dynconf_envoy(routes: list[Tree] | None = None) -> Iterator[DynconfEnvoy]:
    """A running one, in a folder whose name is short enough for a socket; ended in the end."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        envoy = DynconfEnvoy(Path(folder))
        try:
            envoy.start()
            if routes is not None:
                envoy.serve(routes)
            yield envoy
        finally:
            envoy.envoy.close()
