"""The nodes of the test control plane: which stream is whose, which Dataplane is in the mesh, what each is served."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from tests.support.xds.journal import Event, Journal, What
from tests.support.xds.resources import CLUSTER, ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.xds.faults import Faults

Resources = dict[str, dict[str, bytes]]


class Node:
    """A node and what it is served: by type URL and name, the bytes of an Any."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.resources: Resources = {}
        self.versions: dict[str, str] = {}
        self.specifier: bytes = b""
        self.holder: int | None = None
        self.dataplane: dict[str, Any] | None = None
        self.registered = False
        self.freeing: asyncio.TimerHandle | None = None

    def serve(self, resources: Resources) -> None:
        """Serve these from now on: a type whose content differs gets a new version.

        When clusters change, endpoints get a new version too, as Kuma's do: Envoy warms a changed cluster only by a
        new endpoint response.
        """
        changed = {kind for kind in {*resources, *self.resources} if resources.get(kind) != self.resources.get(kind)}
        if CLUSTER in changed and resources.get(ENDPOINTS):
            changed.add(ENDPOINTS)
        self.resources = resources
        self.renew(changed)

    def renew(self, kinds: set[str] | None = None) -> None:
        """New versions with the content there is, as after a new registration; of all types unless named."""
        for kind in self.resources if kinds is None else kinds:
            self.versions[kind] = str(uuid.uuid4())


class Registry:
    """Kuma's rules (2.8.8 and 2.13.5): one ADS stream per node, a Dataplane from the node's metadata outlives it.

    ``changed`` is called when a Dataplane comes or goes. All on the loop.
    """

    def __init__(self, faults: Faults, journal: Journal, changed: Callable[[], None]) -> None:
        self._faults, self._journal, self._changed = faults, journal, changed
        self.nodes: dict[str, Node] = {}

    def node(self, name: str) -> Node:
        return self.nodes.setdefault(name, Node(name))

    def admit(self, stream: int, name: str, dataplane: dict[str, Any] | None) -> bool:
        """Whether the stream becomes the one of its node."""
        node = self.node(name)
        if node.holder is not None and self._faults.one_stream:
            self._journal.add(Event(What.REFUSED, stream, name))
            return False
        node.holder, node.dataplane = stream, dataplane
        self._journal.add(Event(What.ADMITTED, stream, name))
        return True

    def register(self, stream: int, name: str) -> None:
        """Put the Dataplane of an admitted stream into the mesh; every type gets a new version."""
        node = self.node(name)
        node.renew()
        if node.dataplane is not None:
            node.registered = True
            self._journal.add(Event(What.REGISTERED, stream, name))
            self._changed()

    def closed(self, stream: int, name: str) -> None:
        """The stream ended: its node is free when the Dataplane is out of the mesh."""
        node = self.node(name)
        if node.holder != stream:
            return
        node.freeing = asyncio.get_running_loop().call_later(self.linger(name), self._free, stream, node)

    def linger(self, name: str) -> float:
        """Seconds from the end of a node's stream until the node is free."""
        return self._faults.linger if self.node(name).dataplane is not None else 0.0

    def _free(self, stream: int, node: Node) -> None:
        if node.registered:
            node.registered = False
            self._journal.add(Event(What.DEREGISTERED, stream, node.name))
            self._changed()
        node.holder = node.freeing = None
        self._journal.add(Event(What.FREED, stream, node.name))

    def forget(self) -> None:
        """Lose what a control plane with its store in memory loses when it dies."""
        for node in self.nodes.values():
            if node.freeing is not None:
                node.freeing.cancel()
            node.holder = node.freeing = node.dataplane = None
            node.registered = False
            node.renew()
