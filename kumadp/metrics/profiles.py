"""Selection of Envoy's metrics by a MeshMetric policy: profiles and selectors (Kuma 2.8 to 2.14)."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, NamedTuple

from kumadp.exposition.reader import Piece
from kumadp.resources.expressions import BadExpression, compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kumadp.resources.dynconf_bodies import MetricSelector

    Matches = Callable[[bytes], object]

log = logging.getLogger("kumadp.metrics")

ALL, BASIC, NONE = "All", "Basic", "None"
_BASIC = re.compile(
    rb"^(?:envoy_server|envoy_control_plane|envoy_dns_filter|envoy_dns_cares|kuma_dp_dns)"
    rb"|^envoy_cluster_membership_(?:degraded|healthy|total)\Z"
    rb"|rq_time|cx_length_ms|cx_count|_rq|bytes|timeout|health_check|lb_healthy_panic|cx_destroy|error|fail|reset|eject"
    rb"|overflow|cancelled|max_duration_reached|no_cluster|no_route|no_filter_chain|reject|denied"
    rb"|days_until_first_cert_expiring|rbac|cx_active|cx_connect|circuit_breakers|cx_total|ssl_handshake"
    rb"|ssl_context_update_by_sds"
)
# Kuma's own clusters and listeners. Envoy writes their names with underscores, while Kuma's rules have colons and thus
# match nothing.
_INTERNAL = re.compile(
    rb'[{,]envoy_(?:cluster_name|http_conn_manager_prefix|listener_address)="'
    rb'(?:_|system_|tracing[:_]|(?:ads_cluster|access_log_sink|kuma[:_]envoy[:_]admin|kuma[:_]metrics[:_]hijacker)")'
)
# Number of cached decisions: more than any Envoy has families.
_CACHE_SIZE = 20000
# Limits of a list of selectors: number, and text in bytes; and of the names to which expressions are applied (bytes).
_MAX_SELECTORS = 1000
_MAX_TEXT = 64 << 10
_MAX_NAME = 1 << 10


class SelectionSpec(NamedTuple):
    """Names of the appended profiles, and selectors; ``include`` takes precedence over ``exclude``."""

    profiles: tuple[str, ...] = ()
    exclude: tuple[MetricSelector, ...] = ()
    include: tuple[MetricSelector, ...] = ()


class Selection:
    """Selects samples from the pieces of Envoy's exposition.

    The widest profile applies, Basic if none is appended. Basic also excludes the series of Kuma's own clusters and
    listeners. The decision for a name is cached.
    """

    def __init__(self, spec: SelectionSpec = SelectionSpec()) -> None:  # noqa: B008  # it is immutable
        widest = next((name for name in (ALL, BASIC, NONE) if name in spec.profiles), BASIC)
        self._all = widest == ALL
        self._basic = widest == BASIC
        self._exclude, self._include = _any_of(spec.exclude), _any_of(spec.include)
        self._cache: dict[bytes, bool] = {}

    def selects(self, name: bytes) -> bool:
        """Return whether a metric of this name is selected."""
        selected = self._cache.get(name)
        if selected is None:
            in_profile = self._all or (self._basic and _BASIC.search(name) is not None)
            selected = bool((in_profile and not self._exclude(name)) or self._include(name))
            if len(self._cache) < _CACHE_SIZE:
                self._cache[name] = selected
        return selected

    def select(self, piece: Piece) -> Piece | None:
        """Return the selected samples of a piece, None if there are none."""
        family, samples = piece
        if not self.selects(family.name):
            return None
        if self._basic and samples:
            samples = _without_internal(samples)
            if not samples:
                return None
        return Piece(family, samples)


def _without_internal(lines: bytes) -> bytes:
    parts, at = [], 0
    match = _INTERNAL.search(lines)
    while match is not None:
        begin = lines.rfind(b"\n", 0, match.start()) + 1
        parts.append(lines[at:begin])
        at = lines.index(b"\n", match.end()) + 1
        match = _INTERNAL.search(lines, at)
    return b"".join((*parts, lines[at:])) if parts else lines


def _any_of(selectors: Iterable[MetricSelector]) -> Matches:
    """Return a function that tells whether a name matches any selector; those beyond the limits are ignored."""
    prefixes: list[bytes] = []
    exact: set[bytes] = set()
    contained: list[bytes] = []
    expressions: list[Matches] = []
    size = 0
    for number, selector in enumerate(selectors):
        text = selector.match.encode(errors="surrogatepass")
        size += len(text)
        if number >= _MAX_SELECTORS or size > _MAX_TEXT:
            log.warning(
                "only the first %d selectors of metrics (%d KiB) are used, the others are ignored",
                min(number, _MAX_SELECTORS),
                _MAX_TEXT >> 10,
            )
            break
        if selector.type == "Prefix":
            prefixes.append(text)
        elif selector.type == "Exact":
            exact.add(text)
        elif selector.type == "Contains":
            contained.append(text)
        elif selector.type == "Regex":
            expressions += _expression(text)
        else:
            log.warning("a selector of metrics is ignored: unknown type %r", selector.type)
    all_prefixes = tuple(prefixes)

    def matches(name: bytes) -> bool:
        return (
            name in exact
            or name.startswith(all_prefixes)
            or any(part in name for part in contained)
            or (len(name) <= _MAX_NAME and any(search(name) for search in expressions))
        )

    return matches


def _expression(text: bytes) -> list[Matches]:
    try:
        return [compiled(text)]
    except BadExpression as error:
        log.warning("a selector of metrics is ignored: invalid regular expression: %s", error)
        return []
