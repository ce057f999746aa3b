"""Kuma's configuration of access logs to a TCP destination, in the resources of the test control plane."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

# Imported for its descriptor: json_format finds the type of an "@type" among what is loaded.
from envoy.extensions.access_loggers.file.v3 import file_pb2  # noqa: F401

from kumadp.host.socket_names import access_log, kuma_socket
from tests.support.xds.resources import LISTENER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.xds.mesh import Mesh

_FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"


def log_to(mesh: Mesh, sockets: Path, name: str, address: str, text: str = "%REQ(:PATH)%\n") -> None:
    """Have each inbound of the data plane ``name`` log a line for each HTTP request, as a MeshAccessLog does."""
    log = {
        "name": "envoy.access_loggers.file",
        "typedConfig": {
            "@type": _FILE,
            "path": str(kuma_socket(sockets, access_log(name, "default"))),
            "logFormat": {"jsonFormat": {"address": address, "message": text}},
        },
    }
    _change(mesh, [log])


def log_nothing(mesh: Mesh) -> None:
    """Take the policy away."""
    _change(mesh, [])


def _change(mesh: Mesh, logs: list[dict[str, Any]]) -> None:
    for listener, tree in list(mesh.trees[LISTENER].items()):
        if not listener.startswith(("inbound:", "self_inbound_")):
            continue
        changed = copy.deepcopy(tree)
        for network_filter in changed["filterChains"][0]["filters"]:
            if "http_connection_manager" in network_filter["name"]:
                network_filter["typedConfig"]["accessLog"] = logs
        mesh.trees[LISTENER][listener] = changed
    mesh.apply()
