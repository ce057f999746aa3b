"""The control plane's answer to a bootstrap request: the answer, the bootstrap in it, and the guard."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import strategies as st

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.bootstrap.admin_guard import ReservedPort, guard
from kumadp.bootstrap.comparison import differences, same_node
from kumadp.bootstrap.generation import requires_delta
from kumadp.bootstrap.parser import BOUNDS, parse_bootstrap
from kumadp.bootstrap.rewrite import rewrite_for_relay
from kumadp.bootstrap.secrets import secret_in, with_token, without_token
from kumadp.bootstrap.spelling import double_spellings
from kumadp.bootstrap.stat_tags import with_deferred_stats, with_fast_stat_tags
from kumadp.controlplane.bootstrap_messages import UndecodableAnswer, decode_answer
from kumadp.controlplane.response_rules import judge_answer
from kumadp.decoding import Undecodable, convert, is_deeper
from kumadp.errors import BootstrapError
from kumadp.relay.node import encode_node
from tests.fuzz.structure import json_trees
from tests.fuzz.target import Target, captured

if TYPE_CHECKING:
    from collections.abc import Callable

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_WORDS = (
    b"admin:", b"address:", b"socketAddress:", b"socket_address:", b"portValue: 9901", b"port_value:", b"pipe:",
    b"path: /a", b"static_resources:", b"staticResources:", b"listeners:", b"clusters:", b"- ", b"  ", b"{", b"}", b"[",
    b"]", b"&a ", b"*a", b"<<: ", b"!!int ", b"? ", b"'0.0.0.0'", b"'::'", b"mode: 0777", b"typedConfig:", b"'@type':",
    b"null", b"~", b"initialMetadata:", b"{key: authorization, value: x}", b"node:", b"metadata:", b": ", b"\n",
)  # fmt: skip


def _small() -> dict[str, Any]:
    cluster = {
        "name": "ads_cluster",
        "loadAssignment": {
            "endpoints": [
                {"lbEndpoints": [{"endpoint": {"address": {"socketAddress": {"address": "a", "portValue": 5678}}}}]}
            ]
        },
        "transportSocket": {
            "typedConfig": {
                "sni": "x",
                "commonTlsContext": {"validationContext": {"trustedCa": {"inlineBytes": "aA=="}}},
            }
        },
    }
    service = {
        "envoyGrpc": {"clusterName": "ads_cluster"},
        "initialMetadata": [{"key": "authorization", "value": "eyJ.eyJ.x"}],
    }
    address = {"socketAddress": {"address": "0.0.0.0", "portValue": 80, "protocol": "TCP"}}
    return {
        "node": {"id": "default.a", "cluster": "a", "metadata": {"dataplane.resource": "{}", "features": ["a"]}},
        "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": 9901}}},
        "dynamicResources": {"adsConfig": {"apiType": "GRPC", "grpcServices": [service]}, "ldsConfig": {"ads": {}}},
        "hdsConfig": {"grpcServices": [service]},
        "staticResources": {"clusters": [cluster], "listeners": [{"name": "l", "address": address}], "secrets": []},
        "statsConfig": {"statsTags": [{"tagName": "x", "regex": "((.+?)\\.)rbac\\."}]},
    }


def _yaml_seeds() -> list[bytes]:
    google = {
        "targetUri": "dns:///a:5678",
        "channelCredentials": {"sslCredentials": {"rootCerts": {"inlineString": "x"}}},
    }
    other = _small()
    other["dynamicResources"]["adsConfig"]["grpcServices"] = [{"googleGrpc": google}]
    del other["hdsConfig"]
    pipe = {**_small(), "admin": {"address": {"pipe": {"path": "/run/a.sock", "mode": 511}}}}
    small = [yaml.safe_dump(tree, sort_keys=False).encode() for tree in (_small(), other, pipe)]
    return [*small, json.dumps(_small()).encode(), *captured("*/*/bootstrap.yaml")]


def _json_seeds() -> list[bytes]:
    local = _small()
    local["staticResources"]["listeners"][0]["address"]["socketAddress"]["address"] = "127.0.0.1"
    sent = [yaml.safe_load(text) for text in captured("*/*/bootstrap.yaml")[::3]]
    return [json.dumps(tree).encode() for tree in (local, _small(), *sent)]


def _prepared(tree: dict[str, Any]) -> None:
    """Everything that is done with a bootstrap, in the order of `kumadp.bootstrap.prepare`."""
    requires_delta(tree)
    without = without_token(tree)
    secret_in(without)
    with_token(without, "token")
    differences(tree, without)
    same_node(tree, {"node": {}})
    with contextlib.suppress(ValueError):
        encode_node(tree.get("node") or {} if isinstance(tree.get("node"), dict) else {})
    rewritten = tree
    try:
        rewritten = rewrite_for_relay(tree, "/run/kumadp/relay.sock").bootstrap
    finally:
        _guarded(with_deferred_stats(with_fast_stat_tags(rewritten)))


def _guarded(tree: dict[str, Any]) -> None:
    reserved = [ReservedPort("::", 53, "DNS")]
    guarded = guard(tree, strict=False, admin_port=0, reserved=reserved)
    # What was changed is private now: a second look finds nothing, and the admin where the first one put it.
    again = guard(guarded.bootstrap, strict=True, admin_port=0, reserved=reserved)
    assert again.admin == guarded.admin
    assert not again.warnings
    assert (
        not isinstance(guarded.admin, TcpAdmin)
        or guarded.admin.host in {"127.0.0.1", "::1"}
        or (guarded.admin.host.startswith(("127.", "::ffff:7")))
    )
    json.dumps(guarded.bootstrap)


def _bootstrap(data: bytes) -> None:
    _prepared(parse_bootstrap(data))


def _answer(data: bytes) -> None:
    judge_answer(503, {"retry-after": data.decode("latin-1")[:60]}, data)
    judge_answer(422, {}, data)
    answer = decode_answer(data)
    for entry in answer.aggregate:
        assert convert({"port": entry.port}, dict[str, int])
    parse_bootstrap(answer.bootstrap)


def _answer_seeds() -> list[bytes]:
    encoded = base64.b64encode(b"node: {id: a}\n").decode()
    aggregate = [{"name": "a", "address": "", "port": 80, "path": "/m"}]
    networking = {"isUsingTransparentProxy": False, "corefileTemplate": encoded, "address": "127.0.0.1"}
    sidecar = {"networking": networking, "metrics": {"aggregate": aggregate}}
    return [
        json.dumps({"bootstrap": encoded, "kumaSidecarConfiguration": sidecar}).encode(),
    ]


_KEYS = (
    "admin", "address", "socketAddress", "socket_address", "portValue", "port_value", "pipe", "path", "mode",
    "listeners",
    "staticResources", "static_resources", "clusters", "name", "filterChains", "filters", "typedConfig", "@type",
    "route",
    "dynamicResources", "adsConfig", "grpcServices", "envoyGrpc", "clusterName", "googleGrpc", "targetUri", "endpoint",
    "initialMetadata", "key", "value", "loadAssignment", "endpoints", "lbEndpoints", "transportSocket", "secrets",
    "node",
    "metadata", "statsConfig", "statsTags", "tagName", "regex", "hdsConfig", "additionalAddresses", "cluster", "match",
)  # fmt: skip


def _trees() -> st.SearchStrategy[bytes]:
    leaf = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 70_000),
        st.floats(),
        st.sampled_from(["127.0.0.1", "0.0.0.0", "::", "localhost", "9901", "a", "", "@a", "authorization", "1s"]),
    )
    tree = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4)
        ),
        max_leaves=25,
    )

    def planted(parts: tuple[list[int], Any]) -> bytes:
        """Put a generated tree at some place of a real bootstrap."""
        root: Any = _small()
        place, set_ = root, None
        for index in parts[0]:
            keys = (
                list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
            )
            if not keys:
                break
            set_, place = (place, keys[index % len(keys)]), place[keys[index % len(keys)]]
        if set_ is not None:
            set_[0][set_[1]] = parts[1]
        return json.dumps(root, allow_nan=False).encode() if _finite(root) else b"{}"

    return st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=9), tree).map(planted)


def _finite(tree: Any) -> bool:
    try:
        json.dumps(tree, allow_nan=False)
    except ValueError:
        return False
    return True


def _tree_only(check: Callable[[dict[str, Any]], None]) -> Callable[[bytes], None]:
    def parse(data: bytes) -> None:
        try:
            tree = convert(json.loads(data), dict[str, Any])
        except (ValueError, RecursionError, Undecodable):
            return
        # YAML that is nested deeper is not read.
        if not is_deeper(tree, BOUNDS.depth) and not double_spellings(tree):
            check(tree)

    return parse


TARGETS = (
    Target(
        "bootstrap-answer", _answer, _answer_seeds, (UndecodableAnswer, BootstrapError),
        (b'"bootstrap":', b'"networking":', b'"aggregate":', b"null", b"[]", b"{}", b'"port":', b"bm9kZTog"),
        lines=60, lines_base=5000, memory=400, memory_base=100_000, structure=json_trees,
    ),
    Target(
        "bootstrap", _bootstrap, _yaml_seeds, (BootstrapError,), _WORDS, _trees, lines=300, lines_base=25_000,
        memory=1500, memory_base=300_000, largest=8000, slow=True, structure=json_trees,
    ),
    Target(
        "bootstrap-guard", _tree_only(_guarded), _json_seeds, (BootstrapError,),
        (b'"admin":', b'"address":', b'"0.0.0.0"', b'"pipe":', b'"mode":', b"null", b"{}", b"[]", b",", b":",
        b'"@type":'),
        _trees, lines=200, lines_base=25_000, memory=800, memory_base=200_000, structure=json_trees,
    ),
)  # fmt: skip
