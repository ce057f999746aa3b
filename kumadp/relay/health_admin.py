"""The check of Envoy's own admin in health checks (HDS): it goes to where the admin of that Envoy is. Pure.

Control planes up to 2.13 know an admin on a TCP port only. An Envoy whose bootstrap is of 2.14 or newer has it on a
Unix socket; sent to the port, the check fails, and the control plane counts every inbound as not ready (seen with
2.13.5 after 2.14.3).
"""

from __future__ import annotations

from kumadp.relay.protobuf import BadMessage, field_bytes, field_text, fields, text

_SOCKET_PATH = b"dataplane.admin.socketPath"
# Names of the admin's cluster in Kuma 2.8 to 3.0.
_CLUSTERS = frozenset({b"kuma:envoy:admin", b"system_envoy_admin"})
_ENDPOINTS = 3


def admin_socket(first: bytes) -> str:
    """Return the path of the admin's Unix socket, by Envoy's first message on a health stream; empty for a port.

    HealthCheckRequestOrEndpointHealthResponse, its health_check_request, node, metadata, an entry's string_value.
    """
    try:
        for entry in _inner(first, 1, 1, 3, 1):
            if _SOCKET_PATH in _inner(entry, 1):
                return next((text(path, 0, len(path)) for path in _inner(entry, 2, 3)), "")
    except BadMessage:
        pass
    return ""


def with_admin_socket(specifier: bytes, path: str) -> bytes:
    """Return an encoded HealthCheckSpecifier whose check of the admin goes to a Unix socket; as it is if unreadable."""
    try:
        return b"".join(
            field_bytes(number, _check(specifier[start:end], path) if number == 1 else specifier[start:end])
            for number, start, end in fields(specifier)
        )
    except BadMessage:
        return specifier


def _check(check: bytes, path: str) -> bytes:
    """Return a ClusterHealthCheck; its locality_endpoints hold endpoints, these an address, that a pipe."""
    if _CLUSTERS.isdisjoint(_inner(check, 1)):
        return check
    kept = b"".join(
        field_bytes(number, check[start:end]) for number, start, end in fields(check) if number != _ENDPOINTS
    )
    address = field_bytes(2, field_text(1, path))
    return kept + field_bytes(_ENDPOINTS, field_bytes(2, field_bytes(1, address)))


def _inner(message: bytes, *path: int) -> list[bytes]:
    """Return all values of a field, reached through the fields of ``path``. Raises BadMessage."""
    messages = [message]
    for wanted in path:
        messages = [each[start:end] for each in messages for number, start, end in fields(each) if number == wanted]
    return messages
