"""Which of Envoy's metrics a MeshMetric policy wants: profiles and selectors (Kuma 2.8 to 2.14)."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kumadp.exposition.reader import Piece
from kumadp.resources.expressions import BadExpression, compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
# Of Kuma's own parts, as Envoy writes their names: with underscores where Kuma's rules have colons and match nothing.
_INTERNAL = re.compile(
    rb'[{,]envoy_(?:cluster_name|http_conn_manager_prefix|listener_address)="'
    rb'(?:_|system_|tracing[:_]|(?:ads_cluster|access_log_sink|kuma[:_]envoy[:_]admin|kuma[:_]metrics[:_]hijacker)")'
)
# Names that are remembered with the answer: more than any Envoy has families.
_REMEMBERED = 20000
# Selectors of one list, and their text in bytes; and the longest name that an expression is tried on.
_MOST_SELECTORS = 1000
_MOST_TEXT = 64 << 10
_LONGEST_NAME = 1 << 10


class Selector(Protocol):
    """Metrics by name; ``type`` is Prefix, Regex, Exact or Contains."""

    @property
    def type(self) -> str:
        """How ``match`` is compared."""

    @property
    def match(self) -> str:
        """What is compared."""


class Wanted(NamedTuple):
    """Names of the appended profiles, and selectors; ``include`` goes before ``exclude``."""

    profiles: tuple[str, ...] = ()
    exclude: tuple[Selector, ...] = ()
    include: tuple[Selector, ...] = ()


class Selection:
    """Takes pieces of Envoy's exposition and gives what is wanted of them.

    The widest profile counts, Basic where none is appended. With Basic, what Envoy counts of Kuma's own clusters and
    listeners is left out too. Whether a name is wanted is found out once.
    """

    def __init__(self, wanted: Wanted = Wanted()) -> None:  # noqa: B008  # it is immutable
        widest = next((name for name in (ALL, BASIC, NONE) if name in wanted.profiles), BASIC)
        self._all = widest == ALL
        self._basic = widest == BASIC
        self._exclude, self._include = _any_of(wanted.exclude), _any_of(wanted.include)
        self._known: dict[bytes, bool] = {}

    def wants(self, name: bytes) -> bool:
        """Whether a metric of this name is wanted."""
        known = self._known.get(name)
        if known is None:
            known = self._all or (self._basic and _BASIC.search(name) is not None)
            known = bool((known and not self._exclude(name)) or self._include(name))
            if len(self._known) < _REMEMBERED:
                self._known[name] = known
        return known

    def select(self, piece: Piece) -> Piece | None:
        """What is wanted of it, None where that is nothing."""
        family, samples = piece
        if not self.wants(family.name):
            return None
        if self._basic and samples:
            samples = _without_internal(samples)
            if not samples:
                return None
        return Piece(family, samples)


def _without_internal(lines: bytes) -> bytes:
    kept, at = [], 0
    found = _INTERNAL.search(lines)
    while found is not None:
        begin = lines.rfind(b"\n", 0, found.start()) + 1
        kept.append(lines[at:begin])
        at = lines.index(b"\n", found.end()) + 1
        found = _INTERNAL.search(lines, at)
    return b"".join((*kept, lines[at:])) if kept else lines


def _any_of(selectors: Iterable[Selector]) -> Matches:
    """Whether a name is selected by any of them; what exceeds the bounds is left out with a warning."""
    prefixes: list[bytes] = []
    exact: set[bytes] = set()
    contained: list[bytes] = []
    expressions: list[Matches] = []
    size = 0
    for number, selector in enumerate(selectors):
        text = selector.match.encode(errors="surrogatepass")
        size += len(text)
        if number >= _MOST_SELECTORS or size > _MOST_TEXT:
            log.warning(
                "only the first %d selectors of metrics (%d KiB) are used",
                min(number, _MOST_SELECTORS),
                _MOST_TEXT >> 10,
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
            log.warning("a selector of metrics of the unknown type %r selects nothing", selector.type)
    beginnings = tuple(prefixes)

    def matches(name: bytes) -> bool:
        return (
            name in exact
            or name.startswith(beginnings)
            or any(part in name for part in contained)
            or (len(name) <= _LONGEST_NAME and any(search(name) for search in expressions))
        )

    return matches


def _expression(text: bytes) -> list[Matches]:
    try:
        return [compiled(text)]
    except BadExpression as error:
        log.warning("the regular expression of a selector of metrics is wrong and selects nothing: %s", error)
        return []
