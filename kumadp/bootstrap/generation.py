"""The generation of the control plane, by what its bootstrap shows: no field or header of it has a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kumadp.bootstrap.fields import get

if TYPE_CHECKING:
    from collections.abc import Mapping

# Names and numbers of envoy.config.core.v3.ApiConfigSource.ApiType.
_DELTA = frozenset({"DELTA_GRPC", "AGGREGATED_DELTA_GRPC", "3", "6"})


def requires_delta(bootstrap: Mapping[str, Any]) -> bool:
    """Return whether the control plane that sent ``bootstrap`` speaks delta xDS only: Kuma 3.0 or newer.

    It does if ADS has ``apiType: DELTA_GRPC`` in the answer to a request without ``feature-delta-grpc``, which kumadp
    never announces: 2.8.8, 2.13.5 and 2.14.3 then answer GRPC, also with KUMA_EXPERIMENTAL_DELTA_XDS, and 3.0
    (development snapshot of 2026-08-21) answers DELTA_GRPC.
    """
    return str(get(bootstrap, "dynamicResources", "adsConfig", "apiType")) in _DELTA
