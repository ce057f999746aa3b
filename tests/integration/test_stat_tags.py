"""A real Envoy extracts the same tags by the rewritten regexes, and names the rest of each stat the same."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.stat_tags import REWRITTEN, with_deferred_stats, with_fast_stat_tags
from kumadp.host.work_dir import SOURCE_FILE
from kumadp.relay.last_good import FILE
from tests.support.daemon import get_at
from tests.support.poll import poll
from tests.support.stat_names import UNLIKE_ENVOY, extract
from tests.support.xds.envoy import DirectEnvoy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.daemon import Daemon
    from tests.support.loaded_rig import LoadedRig
    from tests.support.xds.plane import XdsControlPlane
    from tests.support.xds.resources import Tree

pytestmark = pytest.mark.process

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
VERSIONS = ("kuma-2.8.8/dataplane", "kuma-2.13.5/full", "kuma-2.14.3/dataplane", "kuma-3.0-dev/full")
LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})? ")
LABEL = re.compile(r'(\w+)="([^"]*)"')
# What the listeners and clusters of a mesh are called, and what comes near to what the regexes look for.
PREFIXES = (
    *(
        "inbound_127_0_0_1_80",
        "self_inbound_dp_http",
        "worker_1",
        "grpc",
        "grpc.client",
        "grpc.client.streams_closed_16",
    ),
    *("grpc.streams_closed_1.streams_closed_22", "grpc-web", "kafka", "kafka.broker-1", "kafka.broker-1.request.7"),
    *("kafka.1.2.produce_duration", "kafkax.1", "rbac", "a.rbac.b.rbac", "a.worker_3", "a.xworker_44.worker_5"),
)
CLUSTERS = ("backend", "worker_1", "kri_msvc_default_zone__worker_8080", "grpc", "a.rbac.b", "rbac", "kafka.1.x")
# Made by each worker when it starts to run, also after Envoy is LIVE.
LATE = {f"server.worker_{number}.watchdog_{kind}" for number in (0, 1) for kind in ("miss", "mega_miss")}
WORDS = ("rbac", "grpc", "kafka", "worker_", "streams_closed_", "x", "7", "12", "_", "inbound", "cluster", "")


def prefixes() -> list[str]:
    """Names for the first parts of stats."""
    chance = random.Random(17)
    generated = {
        "".join(word for _ in range(chance.randint(1, 6)) for word in (chance.choice(WORDS), chance.choice(("", "."))))
        for _ in range(40)
    }
    names = (re.sub(r"\.+$", "", name) for name in [*PREFIXES, *sorted(generated)])
    # Envoy requires a prefix.
    return list(dict.fromkeys(name for name in names if name and not UNLIKE_ENVOY.match(name)))


def _config(kind: str, **fields: Any) -> Tree:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}


def _network(name: str, kind: str, **fields: Any) -> Tree:
    return {"name": name, "typedConfig": _config(f"filters.network.{kind}", **fields)}


def _manager() -> Tree:
    """HTTP with RBAC, and an access log by Envoy's Google gRPC client, which counts how its streams ended."""
    client = {"targetUri": "127.0.0.1:9", "statPrefix": "access_log"}
    log = _config(
        "access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        commonConfig={"logName": "a", "transportApiVersion": "V3", "grpcService": {"googleGrpc": client}},
    )
    filters = [
        {"name": "rbac", "typedConfig": _config("filters.http.rbac.v3.RBAC", rules={"action": "ALLOW"})},
        {"name": "router", "typedConfig": _config("filters.http.router.v3.Router")},
    ]
    return _network(
        "http",
        "http_connection_manager.v3.HttpConnectionManager",
        statPrefix="worker_2.inbound",
        routeConfig={"name": "r"},
        httpFilters=filters,
        accessLog=[{"name": "grpc", "typedConfig": log}],
    )


def _listener(number: int, filters: list[Tree]) -> Tree:
    address = {"socketAddress": {"address": "127.0.0.1", "portValue": 20_000 + number}}
    return {"name": f"l{number}", "address": address, "bindToPort": False, "filterChains": [{"filters": filters}]}


def configuration(tags: list[Tree], folder: Path) -> Tree:
    """An Envoy with stats of all kinds, some with the `prefixes` in front."""
    rules = {"action": "ALLOW"}
    rbac = [
        _network(f"rbac{i}", "rbac.v3.RBAC", statPrefix=f"{name}.", rules=rules) for i, name in enumerate(prefixes())
    ]
    # Each of these makes 300 stats, without "rbac" behind the prefix.
    others = [
        _network(f"z{i}", "zookeeper_proxy.v3.ZooKeeperProxy", statPrefix=name)
        for i, name in enumerate(prefixes()[: len(PREFIXES)])
    ]
    tcp = _network("tcp", "tcp_proxy.v3.TcpProxy", statPrefix="rbac.worker_4", cluster="backend")
    listeners = [_listener(1, [*rbac, tcp]), _listener(2, [*others, tcp]), _listener(3, [_manager()])]
    listeners[2]["statPrefix"] = "worker_5"
    clusters: list[Tree] = [{"name": name, "connectTimeout": "1s", "type": "STATIC"} for name in CLUSTERS]
    return {
        "node": {"id": "default.web", "cluster": "web"},
        "admin": {"address": {"pipe": {"path": str(folder / "a")}}},
        "statsConfig": {"statsTags": tags},
        "staticResources": {"clusters": clusters, "listeners": listeners},
    }


Series = frozenset[tuple[str, frozenset[tuple[str, str]]]]


def _names(envoy: DirectEnvoy) -> list[str]:
    return [line.partition(": ")[0] for line in get_at(envoy.admin, "/stats")[1].splitlines()]


def expose(folder: Path, tree: Tree, *, used_only: bool = False) -> tuple[Series, list[str]]:
    """The series that a scrape gets, without their values, and the names of all stats."""
    envoy = DirectEnvoy(folder, tree)
    envoy.arguments = ("--disable-hot-restart", "--concurrency", "2", "--log-level", "warning")
    envoy.start()
    try:
        envoy.wait_live()
        poll(lambda: set(_names(envoy)) >= LATE, what="the stats of all workers")
        names = _names(envoy)
        status, text = get_at(envoy.admin, "/stats?format=prometheus" + ("&usedonly" if used_only else ""))
        assert status == 200
    finally:
        envoy.close()
    lines = [LINE.match(line) for line in text.splitlines() if line and not line.startswith("#")]
    assert all(lines)
    return frozenset((line["name"], frozenset(LABEL.findall(line["labels"] or ""))) for line in lines if line), names


def labels(series: Series, of: Iterable[str]) -> set[frozenset[tuple[str, str]]]:
    """The combinations of these labels that occur."""
    wanted = frozenset(of)
    return {frozenset(pair for pair in pairs if pair[0] in wanted) for _, pairs in series}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_scrape_has_the_same_series(tmp_path: Path, version: str) -> None:
    bootstrap = parse_bootstrap((CAPTURES / version / "bootstrap.yaml").read_bytes())
    sent = bootstrap["statsConfig"]["statsTags"]
    fast = with_fast_stat_tags(bootstrap)["statsConfig"]["statsTags"]
    assert sent != fast
    before, names = expose(tmp_path, configuration(sent, tmp_path))
    after, names_after = expose(tmp_path, configuration(fast, tmp_path))
    assert before == after
    assert sorted(names) == sorted(names_after)

    tags = {tag["tagName"]: tag["regex"] for tag in sent}
    used = {name for _, pairs in before for name, _ in pairs}
    assert used >= tags.keys()
    # Python's `re`, by which the rules are proved on generated names, finds what Envoy finds.
    found = {
        tag: {name: value for name in names if (value := extract(regex, name).value) is not None}
        for tag, regex in tags.items()
    }
    expected = {frozenset((tag, values[name]) for tag, values in found.items() if name in values) for name in names}
    assert labels(before, tags) == expected
    for name in names:
        for regex in tags.values():
            assert extract(REWRITTEN.get(regex, regex), name) == extract(regex, name)


def test_deferred_stats_are_those_of_unused_clusters(tmp_path: Path) -> None:
    tree = configuration([], tmp_path)
    deferred = with_deferred_stats(tree)
    (all_series, _), (fewer, _) = expose(tmp_path, tree), expose(tmp_path, deferred)
    assert fewer < all_series
    missing = all_series - fewer
    # Envoy takes what comes before the first dot for a cluster's name.
    assert {dict(labels)["envoy_cluster_name"] for _, labels in missing} == {
        name.partition(".")[0] for name in CLUSTERS
    }
    used, used_if_deferred = (
        {series for series in expose(tmp_path, one, used_only=True)[0] if "envoy_cluster_name" in dict(series[1])}
        for one in (tree, deferred)
    )
    assert used
    assert used == used_if_deferred


def _regexes(daemon: Daemon) -> list[str]:
    """The regexes that Envoy runs with."""
    configs = json.loads(daemon.get_admin("/config_dump")[1])["configs"]
    bootstrap = next(config["bootstrap"] for config in configs if "bootstrap" in config)
    return [tag["regex"] for tag in bootstrap["stats_config"]["stats_tags"]]


@pytest.mark.linger(0.0)
def test_an_envoy_with_the_tags_as_sent_is_adopted(loaded_rig: LoadedRig, plane: XdsControlPlane) -> None:
    requested: list[Tree] = []
    plane.edit = requested.append
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up("--stat-tags=as-sent"))
        envoy, sent = loaded_rig.the_envoy(), _regexes(first)
        assert REWRITTEN.keys() & set(sent)
        loaded_rig.kill(first)
        second = stack.enter_context(loaded_rig.up("--bootstrap-check-interval=300ms"))
        begun = len(requested)
        poll(lambda: len(requested) >= begun + 3, what="the bootstrap compared")
        assert loaded_rig.the_envoy() == envoy
        assert _regexes(second) == sent
        status = loaded_rig.status(second)
        assert (status.get("restart_required"), status["concerns"]) == (None, [])
        loaded_rig.reload(second)
        assert _regexes(second) == [REWRITTEN.get(regex, regex) for regex in sent]
        begun = len(requested)
        poll(lambda: len(requested) >= begun + 3, what="the bootstrap compared again")
        assert "restart_required" not in loaded_rig.status(second)
        # The copies for later starts have what the control plane sent.
        copy = poll(lambda: file.read_bytes() if (file := loaded_rig.state / FILE).exists() else b"", what="the copy")
        assert all(regex.encode() in copy for regex in sent)
        assert not any(regex.encode() in copy for regex in REWRITTEN.values())
        source = json.loads((loaded_rig.work / SOURCE_FILE).read_bytes())
        assert {tag["regex"] for tag in source["tree"]["statsConfig"]["statsTags"]} == set(sent)
