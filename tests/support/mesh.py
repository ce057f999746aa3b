"""Dataplanes for the tests of standalone mode, built and written as an operator would write them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Tree = dict[str, Any]


def inbound(port: int, application: int = 0, service: str = "web", protocol: str = "http", **more: Any) -> Tree:
    """An inbound; without ``application`` the port is the application's own, as where no sidecar stands before it."""
    tags = {"kuma.io/service": service, **({"kuma.io/protocol": protocol} if protocol else {}), **more.pop("tags", {})}
    behind = {"servicePort": application, "serviceAddress": "127.0.0.1"} if application else {}
    return {"port": port, **behind, "tags": tags, **more}


def outbound(port: int, service: str, address: str = "", **tags: str) -> Tree:
    """An outbound; other tags by keyword."""
    return {"port": port, **({"address": address} if address else {}), "tags": {"kuma.io/service": service, **tags}}


def untagged(port: int, application: int = 0, protocol: str = "http", **more: Any) -> Tree:
    """An inbound in the form of Kuma 3.0, without tags; for ``application`` see `inbound`."""
    tree = inbound(port, application, protocol="", **more)
    del tree["tags"]
    return {**tree, "protocol": protocol} if protocol else tree


def reference(port: int, service: str = "", at: int = 0, address: str = "", **labels: str) -> Tree:
    """An outbound in the form of Kuma 3.0: to the port ``at`` of a service, by its name or by labels."""
    target: Tree = {"kind": "MeshService", "port": at}
    target |= {"name": service} if service else {"labels": labels}
    return {"port": port, **({"address": address} if address else {}), "backendRef": target}


def dataplane(
    name: str,
    inbounds: list[Tree],
    outbounds: list[Tree] | None = None,
    *,
    address: str = "127.0.0.1",
    admin: int = 0,
    networking: Tree | None = None,
    **more: Any,
) -> Tree:
    """A Dataplane."""
    full: Tree = {"address": address, "inbound": inbounds, "outbound": outbounds or [], **(networking or {})}
    if admin:
        full["admin"] = {"port": admin}
    return {"type": "Dataplane", "mesh": "default", "name": name, "networking": full, **more}


def write(folder: Path, *dataplanes: Tree) -> Path:
    """Write each Dataplane to ``<name>.yaml`` in the folder, renamed into place, with one field a line."""
    folder.mkdir(exist_ok=True)
    for tree in dataplanes:
        beside = folder / f".{tree['name']}"
        beside.write_text(json.dumps(tree, indent=1))
        beside.rename(folder / f"{tree['name']}.yaml")
    return folder
