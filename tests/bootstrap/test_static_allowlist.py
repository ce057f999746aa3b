"""A bootstrap with a static listener that others reach holds nothing but what is known to be harmless."""

from __future__ import annotations

from typing import Any

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin
from kumadp.bootstrap.admin_guard import guard
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.static_allowlist import check_public, is_ready, reaches
from kumadp.errors import BootstrapError
from tests.bootstrap.hostile import (
    ADMIN,
    HOSTILE,
    PATHS,
    SOCKET,
    Tree,
    control_plane_listener,
    http_listener,
    manager,
    public_bootstrap,
)
from tests.support.scripted_control_plane import socket_address, static_cluster, static_listener


@pytest.mark.parametrize("admin", [None, SOCKET])
def test_a_harmless_bootstrap_passes_unchanged(admin: Tree | None) -> None:
    tree = public_bootstrap(admin)
    assert guard(tree).bootstrap == tree


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_lead_to_the_admin_is_refused(name: str) -> None:
    with pytest.raises(BootstrapError) as refused:
        guard(HOSTILE[name])
    assert all(problem.path and "\n" not in str(problem) for problem in refused.value.problems)


@pytest.mark.parametrize("path", PATHS)
def test_the_admin_s_socket_is_recognised_by_its_name_in_any_directory(path: str) -> None:
    tree = public_bootstrap(SOCKET)
    tree["staticResources"]["clusters"].append(static_cluster("way", {"pipe": {"path": path}}))
    with pytest.raises(BootstrapError, match="leads to Envoy's admin"):
        guard(tree)


@pytest.mark.parametrize("admin", [None, SOCKET])
def test_the_control_plane_s_own_ready_listener_passes(admin: Tree | None) -> None:
    tree = public_bootstrap(admin)
    target = socket_address(ADMIN) if admin is None else {"pipe": {"path": SOCKET["pipe"]["path"]}}
    static = tree["staticResources"]
    static["clusters"].append(static_cluster("kuma:envoy:admin", target))
    static["listeners"] = [control_plane_listener("kuma:envoy:admin", "the control plane's")]
    assert guard(tree).bootstrap == tree


@pytest.mark.parametrize("weak", ["no certificate", "no authority", "untrusted", "elsewhere", "a prefix"])
def test_a_listener_that_only_looks_like_it_is_refused(weak: str) -> None:
    tree = public_bootstrap()
    static = tree["staticResources"]
    static["clusters"].append(static_cluster("way", socket_address(ADMIN)))
    listener = control_plane_listener("way", "the control plane's")
    static["listeners"] = [listener]
    context = listener["filterChains"][1]["transportSocket"]["typedConfig"]
    if weak == "no certificate":
        context["requireClientCertificate"] = False
    elif weak == "no authority":
        del context["commonTlsContext"]["validationContext"]
    elif weak == "untrusted":
        context["commonTlsContext"]["validationContext"]["trustChainVerification"] = "ACCEPT_UNTRUSTED"
    elif weak == "elsewhere":
        listener["address"] = socket_address(18443, "0.0.0.0")
    else:
        listener["filterChains"][0]["filters"] = [manager("way", {"prefix": "/"})]
    with pytest.raises(BootstrapError, match="leads to Envoy's admin"):
        guard(tree)


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    tree = public_bootstrap()
    tree["staticResources"]["clusters"][0]["lrsServer"] = {"self": {}}
    tree["staticResources"]["listeners"][0]["udpListenerConfig"] = {}
    with pytest.raises(BootstrapError) as refused:
        guard(tree)
    assert sorted(problem.path for problem in refused.value.problems) == [
        "staticResources.clusters[0].lrsServer",
        "staticResources.listeners[0].udpListenerConfig",
    ]


@pytest.mark.parametrize("free", ["node", "layeredRuntime"])
def test_keys_of_the_user_s_choice_are_no_fields(free: str) -> None:
    keys = {"a_b": 1, "aB": 2}
    inside: dict[str, Any] = {
        "node": {"id": "x", "metadata": keys},
        "layeredRuntime": {"layers": [{"name": "x", "staticLayer": keys}]},
    }
    tree = public_bootstrap() | {free: inside[free]}
    assert guard(tree).bootstrap == tree


def test_two_spellings_are_refused_without_a_public_listener_too() -> None:
    tree = {"admin": {"address": socket_address(ADMIN)}, "static_resources": {}, "staticResources": {}}
    with pytest.raises(BootstrapError, match=r"static_resources|staticResources"):
        guard(tree)


@pytest.mark.parametrize(
    "text",
    [
        '{"admin": {}, "static_resources": {}, "staticResources": {}}',
        '{"admin": {}, "admin": {}}',
        "admin: {}\nnode: {id: a}\nadmin: {}\n",
        "a: &a {b: 1}\nc:\n  <<: *a\n  d: 1\n  d: 2\n",
    ],
)
def test_a_field_that_is_there_twice_is_refused_as_it_is_read(text: str) -> None:
    with pytest.raises(BootstrapError, match=r"twice|also spelled"):
        parse_bootstrap(text.encode())


def test_a_merge_key_fills_in_what_is_not_there() -> None:
    text = b"a: &a {b: 1, c: 2}\nd:\n  <<: *a\n  b: 3\n"
    assert parse_bootstrap(text) == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}
    # The mapping that is merged in is walked once more, with what it was given itself.
    twice = b"z: &z {x: 0}\na: &a\n  <<: *z\n  x: 1\nb:\n  <<: *a\n  y: 2\nc: *a\n"
    assert set(parse_bootstrap(twice)["b"]) == {"x", "y"}


def test_listeners_on_loopback_are_private() -> None:
    tree = public_bootstrap()
    tree["staticResources"] = {
        "listeners": [
            static_listener("behind", 80, "way") | {"bindToPort": False},
            static_listener("redirected", 18443, "way") | {"useOriginalDst": True},
            http_listener("inner", 18080, [{"filters": [manager("way")]}], "::1"),
        ],
        "clusters": [
            static_cluster("way", socket_address(ADMIN)),
            {"name": "any", "type": "ORIGINAL_DST", "lbPolicy": "CLUSTER_PROVIDED"},
        ],
    }
    assert guard(tree).bootstrap == tree


@pytest.mark.parametrize(
    ("match", "action", "expected"),
    [
        ({"path": "/ready"}, {}, True),
        ({"prefix": "/ready"}, {}, True),
        ({"path": "/ready"}, {"prefixRewrite": "/ready"}, True),
        ({"path": "/ready"}, {"prefixRewrite": "/quitquitquit"}, False),
        ({"path": "/ready"}, {"prefix_rewrite": "/"}, False),
        ({"path": "/ready"}, {"regexRewrite": {}}, False),
        ({"prefix": "/"}, {}, False),
        ({}, {}, False),
    ],
)
def test_a_route_of_ready_alone(match: Tree, action: Tree, *, expected: bool) -> None:
    assert is_ready({"match": match, "route": {"cluster": "x", **action}}) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", True),
        ("::", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::127.0.0.1", True),
        ("localhost", True),
        ("a.name.that.may.resolve.to.it", True),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
    ],
)
def test_addresses_that_may_be_the_admin_s(host: str, *, expected: bool) -> None:
    admin = TcpAdmin("127.0.0.1", ADMIN)
    for port in (ADMIN, str(ADMIN)):
        assert reaches({"socketAddress": {"address": host, "portValue": port}}, admin) is expected
    assert not reaches({"socketAddress": {"address": host, "portValue": ADMIN + 1}}, admin)
    assert not reaches({"pipe": {"path": "/x"}}, admin)
    assert not reaches({"socketAddress": {"address": host, "portValue": ADMIN}}, UnixAdmin("/x"))


def test_problems_name_the_full_path_of_each_field_outside_the_allowlist() -> None:
    tree = public_bootstrap() | {"tracing": {"http": {}}, "statsSinks": None}
    tree["staticResources"]["clusters"][0]["type"] = "ORIGINAL_DST"
    problems = {problem.path: problem.message for problem in check_public(tree, TcpAdmin("127.0.0.1", ADMIN))}
    assert set(problems) == {"tracing", "staticResources.clusters[0].type"}
    assert "'ORIGINAL_DST' is not known to keep Envoy's admin private" in problems["staticResources.clusters[0].type"]
