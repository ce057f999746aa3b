"""The generation of the control plane, by what its bootstrap shows: no field or header of it has a version."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from kumadp.bootstrap.fields import get

if TYPE_CHECKING:
    from collections.abc import Mapping

# Names and numbers of envoy.config.core.v3.ApiConfigSource.ApiType.
_DELTA = frozenset({"DELTA_GRPC", "AGGREGATED_DELTA_GRPC", "3", "6"})


class Generation(enum.IntEnum):
    """The major version of a control plane, as its bootstrap shows it."""

    KUMA_2 = 2
    KUMA_3 = 3


def generation_of(bootstrap: Mapping[str, Any]) -> Generation:
    """Return the generation of the control plane that sent ``bootstrap``; not for one rewritten for the relay."""
    return Generation.KUMA_3 if requires_delta(bootstrap) else Generation.KUMA_2


def requires_delta(bootstrap: Mapping[str, Any]) -> bool:
    """Return whether the control plane that sent ``bootstrap`` speaks delta xDS only: Kuma 3.0 or newer.

    It does if ADS has ``apiType: DELTA_GRPC`` in the answer to a request without ``feature-delta-grpc``, which kumadp
    never announces: 2.8.8, 2.13.5 and 2.14.3 then answer GRPC, also with KUMA_EXPERIMENTAL_DELTA_XDS, and 3.0
    (development snapshot of 2026-08-21) answers DELTA_GRPC.
    """
    return str(get(bootstrap, "dynamicResources", "adsConfig", "apiType")) in _DELTA
