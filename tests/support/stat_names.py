"""Names of stats, of the parts that the regexes of Kuma's bootstrap look for, and Envoy's rule for skipping one."""

from __future__ import annotations

import re
from typing import NamedTuple

from hypothesis import strategies as st

_PARTS = (
    *("rbac", "grpc", "kafka", "worker_", "streams_closed_", "streams_closed_16", "_duration", "request"),
    *("cluster", "listener", "http", "inbound_127_0_0_1_80", "self_inbound_dp_http", "kri_msvc_default__worker_8080"),
    *("allowed", "upstream_rq_2xx", "x", "-", "_", "0", "7", "12", " ", ""),
)
# What Envoy's TagExtractorImplBase::extractRegexPrefix takes a word from: "^word\." or "^word(?=\.)".
_PREFIX = re.compile(r"\^([A-Za-z0-9_]+)(?:\\\.|\(\?=\\\.\))")
# Only statistics of gRPC clients have such a number, and their scope is always "grpc.<prefix>.".
UNLIKE_ENVOY = re.compile(r"grpc[^.].*streams_closed_[0-9]|grpcstreams_closed_[0-9]")
_BEGINNINGS = ("", "grpc.", "kafka.", "grpc.a.streams_closed_7", "kafka.broker.1.", "cluster.", "worker_3.", "a.rbac.")


def stat_names() -> st.SearchStrategy[str]:
    """Names with empty parts, and with dots and without between the others."""
    part = st.sampled_from(_PARTS) | st.text("abgkrw.01_", max_size=4)
    joined = st.lists(st.tuples(part, st.sampled_from((".", ".", "", "_"))), max_size=7)
    rest = joined.map(lambda pairs: "".join(part + after for part, after in pairs))
    return st.tuples(st.sampled_from(_BEGINNINGS), rest).map("".join)


def prefix_of(regex: str) -> str:
    """Return the word that a name's first part must be, or Envoy does not run the regex; empty if it always does."""
    match = _PREFIX.match(regex)
    return match[1] if match is not None else ""


def skipped_by(regex: str, name: str) -> bool:
    """Return whether Envoy does not run a regex for a name, as its TagProducerImpl::forEachExtractorMatching does."""
    prefix = prefix_of(regex)
    first, dot, _ = name.partition(".")
    return bool(prefix) and (not dot or first != prefix)


class Extracted(NamedTuple):
    """A tag's value, None without the tag, and the name without what Envoy removes from it."""

    value: str | None
    rest: str


def extract(regex: str, name: str) -> Extracted:
    """What Envoy does with a name: the first group is removed, the second is the value, else the first."""
    match = re.search(regex, name, re.ASCII)
    if match is None:
        return Extracted(None, name)
    start, end = match.span(1)
    value = match[2] if len(match.groups()) > 1 else match[1]
    return Extracted(value, name[:start] + name[end:])
