"""The resources of a data plane that reaches many services (1,000): sizes as in captures of Kuma 2.14 and 3.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.xds.resources import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    Tree,
    eds_cluster,
    encode,
    endpoints,
    http_listener,
    name_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.xds.mesh import Mesh

SERVICES = 1000
# Bytes of each resource as an Any.
SIZES = {CLUSTER: 409, ENDPOINTS: 276, LISTENER: 703}
# On another address, so that these ports are none of those that a test may use for its listeners.
ADDRESS = "127.64.0.1"
PORTS = 20_000


def _name(number: int) -> str:
    return f"backend-{number:04d}"


def _metadata(padding: str) -> Tree:
    return {"filterMetadata": {"io.kuma.tags": {"kuma.io/service": padding}}}


def _cluster(number: int, turn: int, padding: str) -> Tree:
    tree = eds_cluster(_name(number), http2=True)
    return tree | {"connectTimeout": f"{5 + turn}s", "metadata": _metadata(padding)}


def _endpoints(number: int, turn: int, padding: str) -> Tree:
    tree = endpoints(_name(number), [("127.0.0.1", 10_000 + turn)])
    tree["endpoints"][0]["lbEndpoints"][0]["metadata"] = _metadata(padding)
    return tree


def _listener(number: int, turn: int, padding: str) -> Tree:
    port = PORTS + number
    tree = http_listener(f"outbound:{ADDRESS}:{port}", ADDRESS, port, _name(number), "OUTBOUND")
    manager = tree["filterChains"][0]["filters"][0]["typedConfig"]
    manager["routeConfig"]["virtualHosts"][0]["routes"][0]["route"]["timeout"] = f"{15 + turn}s"
    # As with transparent proxying: traffic comes by way of another listener.
    return tree | {"bindToPort": False, "metadata": _metadata(padding)}


_MAKERS: dict[str, Callable[[int, int, str], Tree]] = {
    CLUSTER: _cluster,
    ENDPOINTS: _endpoints,
    LISTENER: _listener,
}


def _padding(type_url: str) -> str:
    """Return what fills a resource of a type up to its size."""
    make, size = _MAKERS[type_url], SIZES[type_url]
    length = size
    while (over := len(encode(type_url, make(0, 0, "x" * length))) - size) > 0:
        length -= over
    return "x" * length


class LargeMesh:
    """Fills a mesh of the test control plane, and changes one thing at a time."""

    def __init__(self, mesh: Mesh, services: int = SERVICES) -> None:
        self._mesh = mesh
        self.services = services
        self._turn = 0
        self._paddings = {type_url: _padding(type_url) for type_url in _MAKERS}
        for number in range(services):
            for type_url in _MAKERS:
                self._set(type_url, number)
        mesh.apply()

    def _set(self, type_url: str, number: int) -> None:
        tree = _MAKERS[type_url](number, self._turn, self._paddings[type_url])
        self._mesh.ready[type_url][name_of(type_url, tree)] = encode(type_url, tree)

    def change(self, *types: str) -> None:
        """Change the resources of these types of one service, another one each time."""
        self._turn += 1
        for type_url in types:
            self._set(type_url, self._turn % self.services)
        self._mesh.apply()
