"""Secrets in a bootstrap that is stored on disk: the token is removed, and any other secret is detected."""

from __future__ import annotations

import base64
import binascii
import copy
from typing import TYPE_CHECKING, Any

from kumadp.bootstrap.fields import get, snake

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Fields of Envoy's TLS and gRPC messages that hold nothing but secrets, unless they name a file.
_SECRET_FIELDS = frozenset(
    snake(name)
    for name in (
        "accessToken",
        "genericSecret",
        "googleRefreshToken",
        "password",
        "pkcs12",
        "privateKey",
        "serviceAccountJwtAccess",
        "sessionTicketKeys",
    )
)


def without_token(bootstrap: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without the header ``authorization`` of any gRPC service."""
    copied: dict[str, Any] = _without(bootstrap)
    return copied


def with_token(bootstrap: Mapping[str, Any], token: str) -> dict[str, Any]:
    """Return a copy with the token in each place where `without_token` removed it: for an Envoy without the relay."""
    copied: dict[str, Any] = copy.deepcopy(dict(bootstrap))
    for config in (get(copied, "dynamicResources", "adsConfig"), get(copied, "hdsConfig")):
        for service in get(config, "grpcServices") or []:
            headers = get(service, "initialMetadata")
            if token and isinstance(headers, list) and not any(map(_is_token, headers)):
                headers.append({"key": "authorization", "value": token})
    return copied


def secret_in(bootstrap: Mapping[str, Any]) -> str:
    """Return the path of the first field that holds a private key, a password or a token; "" if none does."""
    return next(_secrets(bootstrap, ""), "")


def _without(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            name: _without([item for item in value if not _is_token(item)])
            if snake(str(name)) == "initial_metadata" and isinstance(value, list)
            else _without(value)
            for name, value in tree.items()
        }
    if isinstance(tree, list):
        return [_without(item) for item in tree]
    return tree


def _is_token(header: Any) -> bool:
    return str(get(header, "key")).lower() == "authorization"


def _secrets(tree: Any, path: str) -> Iterator[str]:
    if isinstance(tree, dict):
        if _is_token(tree) and get(tree, "value"):
            yield path
        for name, value in tree.items():
            below = f"{path}.{name}" if path else str(name)
            # What is not inline is the name of a file or of a variable.
            if snake(str(name)) in _SECRET_FIELDS and not (get(value, "filename") or get(value, "environmentVariable")):
                yield below
            else:
                yield from _secrets(value, below)
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _secrets(value, f"{path}[{index}]")
    elif isinstance(tree, str) and "PRIVATE KEY" in tree + _decoded(tree):
        yield path


def _decoded(text: str) -> str:
    """Decode a text from base64, as inlineBytes are; returns "" if it is not base64."""
    try:
        return base64.b64decode(text, validate=True).decode("latin-1")
    except (ValueError, binascii.Error):
        return ""
