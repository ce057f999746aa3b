"""The guard: captured bootstraps pass unchanged, whatever would show the admin is mended or refused."""

from __future__ import annotations

import contextlib
import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin
from kumadp.bootstrap.admin_guard import ReservedPort, guard
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.errors import BootstrapError
from kumadp.host.private_file import write_json
from tests.bootstrap.hostile import changed, every_path, public_bootstrap
from tests.support.needs import need_envoy
from tests.support.scripted_control_plane import socket_address, static_cluster, static_listener

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
BOOTSTRAPS = sorted(path.parent.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*/bootstrap.yaml"))


def captured(name: str) -> dict[str, Any]:
    return parse_bootstrap((CAPTURES / name / "bootstrap.yaml").read_bytes())


def with_admin(address: Any) -> dict[str, Any]:
    return {"node": {"id": "a"}, "admin": {"address": address}}


@pytest.mark.parametrize("name", BOOTSTRAPS)
def test_a_real_bootstrap_passes_unchanged(name: str) -> None:
    tree = captured(name)
    guarded = guard(tree)
    assert guarded.bootstrap == tree
    assert guarded.warnings == ()
    assert isinstance(guarded.admin, UnixAdmin) or guarded.admin.host == "127.0.0.1"


@pytest.mark.process
@pytest.mark.parametrize("name", BOOTSTRAPS)
def test_envoy_takes_what_the_guard_wrote(tmp_path: Path, name: str) -> None:
    tree = captured(name)
    tree["admin"]["address"] = {"socket_address": {"address": "0.0.0.0", "port_value": 9901}}
    path = write_json(tmp_path / "bootstrap.yaml", guard(tree).bootstrap)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    done = subprocess.run(
        [need_envoy(), "--mode", "validate", "-c", path, "-l", "error"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_unix_socket_of_2_14_passes_unchanged() -> None:
    tree = with_admin({"pipe": {"path": "/run/kumadp/kuma-envoy-admin.sock", "mode": 384}})
    guarded = guard(tree, admin_port=9901)
    assert guarded.bootstrap == tree
    assert guarded.admin == UnixAdmin("/run/kumadp/kuma-envoy-admin.sock")
    assert guarded.warnings == ()


OPEN = {
    "every IPv4 address": ({"socketAddress": {"address": "0.0.0.0", "portValue": 9901}}, "127.0.0.1"),
    "every IPv6 address": ({"socketAddress": {"address": "::", "portValue": 9901}}, "::1"),
    "an address of the host": ({"socketAddress": {"address": "192.0.2.7", "portValue": 9901}}, "127.0.0.1"),
    "an IPv6 address of the host": ({"socketAddress": {"address": "2001:db8::7", "portValue": 9901}}, "::1"),
    "a mapped address": ({"socketAddress": {"address": "::ffff:192.0.2.7", "portValue": 9901}}, "::1"),
    "a host name": ({"socketAddress": {"address": "admin.example", "portValue": 9901}}, "127.0.0.1"),
    "snake_case": ({"socket_address": {"address": "0.0.0.0", "port_value": 9901}}, "127.0.0.1"),
    "a port as text": ({"socketAddress": {"address": "0.0.0.0", "portValue": "9901"}}, "127.0.0.1"),
}


@pytest.mark.parametrize("name", OPEN)
def test_an_open_admin_is_moved_to_loopback_loudly(name: str) -> None:
    address, host = OPEN[name]
    guarded = guard(with_admin(address))
    assert guarded.admin == TcpAdmin(host, 9901)
    assert guarded.bootstrap["admin"]["address"] == socket_address(9901, host)
    assert len(guarded.warnings) == 1
    assert "ADMIN" in guarded.warnings[0]


@pytest.mark.parametrize("name", OPEN)
def test_an_open_admin_is_refused_when_strict(name: str) -> None:
    with pytest.raises(BootstrapError) as refused:
        guard(with_admin(OPEN[name][0]), strict=True)
    assert "is not loopback" in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1"])
def test_loopback_passes(host: str) -> None:
    tree = with_admin(socket_address(9901, host))
    assert guard(tree, strict=True).bootstrap == tree


@pytest.mark.parametrize("admin", [None, {}, {"address": None}, {"address": {}}, {"accessLog": []}])
def test_a_bootstrap_without_an_admin_gets_one_on_loopback(admin: Any) -> None:
    guarded = guard({"node": {}, "admin": admin} if admin is not None else {"node": {}})
    assert guarded.admin == TcpAdmin("127.0.0.1", 9901)
    assert guarded.bootstrap["admin"]["address"] == socket_address(9901)
    assert "has no admin" in guarded.warnings[0]


def test_only_the_address_of_the_admin_is_ours() -> None:
    tree = {"admin": {"accessLog": [{"name": "x"}], "address": socket_address(9901, "0.0.0.0")}}
    assert guard(tree).bootstrap["admin"]["accessLog"] == [{"name": "x"}]
    assert tree["admin"]["address"] == socket_address(9901, "0.0.0.0")


def test_the_port_of_the_dataplane_is_honoured() -> None:
    guarded = guard(with_admin(socket_address(9901)), admin_port=9909)
    assert guarded.admin == TcpAdmin("127.0.0.1", 9909)
    assert "9909" in guarded.warnings[0]
    assert guard(with_admin(socket_address(9909)), admin_port=9909).warnings == ()


def test_an_abstract_socket_is_refused() -> None:
    with pytest.raises(BootstrapError, match="no owner"):
        guard(with_admin({"pipe": {"path": "@admin"}}))


@pytest.mark.parametrize("mode", [0o666, "438", 0o640, "everyone"])
def test_a_socket_that_others_may_use_is_closed_or_refused(mode: object) -> None:
    tree = with_admin({"pipe": {"path": "/run/admin.sock", "mode": mode}})
    guarded = guard(tree)
    assert guarded.bootstrap["admin"]["address"]["pipe"] == {"path": "/run/admin.sock", "mode": 0o600}
    assert "/run/admin.sock WITH MODE" in guarded.warnings[0]
    with pytest.raises(BootstrapError, match="lets others use"):
        guard(tree, strict=True)


@pytest.mark.parametrize("pipe", [{}, {"mode": 0}])
def test_a_socket_gets_a_mode_whatever_the_umask(pipe: dict[str, int]) -> None:
    guarded = guard(with_admin({"pipe": {"path": "/run/admin.sock", **pipe}}), strict=True)
    assert guarded.bootstrap["admin"]["address"]["pipe"]["mode"] == 0o600
    assert guarded.warnings == ()


ODD = ["text", 5, None, True, {}, {"a": 1}, [None], ["x"], [[1]], [{"address": "x"}], 1.5, [[{"a": [{}]}]]]


@pytest.mark.parametrize("odd", ODD)
def test_values_that_are_no_list_or_mapping_are_refused_by_envoy(odd: Any) -> None:
    tree = with_admin(socket_address(9901))
    assert guard(tree | {"staticResources": odd}).admin == TcpAdmin("127.0.0.1", 9901)
    assert guard(tree | {"staticResources": {"clusters": odd}}).admin == TcpAdmin("127.0.0.1", 9901)
    assert guard({"admin": odd}).admin == TcpAdmin("127.0.0.1", 9901)
    assert guard({"admin": {"address": odd}}).admin == TcpAdmin("127.0.0.1", 9901)
    assert guard({"admin": {"address": {"pipe": odd}}}).admin == TcpAdmin("127.0.0.1", 9901)


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_behind_a_public_listener_pass_or_are_refused_and_never_a_bug(odd: Any) -> None:
    """Envoy 1.40 reads one value as a list of one, and lists in lists as one list: no list may still be listeners."""
    public = public_bootstrap()
    for path in every_path(public):
        for edit in (lambda _value: odd, lambda value: [value, odd], lambda value: {"x": value}):
            with contextlib.suppress(BootstrapError):
                guard(changed(public, path, edit))


@pytest.mark.parametrize("port", ["²", "9" * 5000, -1, "x", None, 1.5])
def test_a_port_that_is_none_is_the_default(port: Any) -> None:
    address = {"socketAddress": {"address": "127.0.0.1", "portValue": port}}
    admin = guard(with_admin(address)).admin
    assert isinstance(admin, TcpAdmin)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_of_ours_is_named_with_what_it_is_for(host: str) -> None:
    reserved = [ReservedPort(host, 9902, "readiness")]
    tree = with_admin(socket_address(9902)) | {
        "staticResources": {"listeners": [static_listener("a", 9902, "b"), static_listener("c", 9904, "b")]}
    }
    with pytest.raises(BootstrapError) as refused:
        guard(tree, reserved=reserved)
    paths = [problem.path for problem in refused.value.problems if "readiness" in problem.message]
    assert paths == ["admin.address", "staticResources.listeners[0]"]


def test_a_static_listener_on_the_admin_s_port_is_refused() -> None:
    tree = with_admin(socket_address(9901)) | {"staticResources": {"listeners": [static_listener("a", 9901, "b")]}}
    with pytest.raises(BootstrapError, match="admin's port"):
        guard(tree)


ADMIN_CLUSTERS = {
    "by address": (socket_address(9901), socket_address(9901)),
    "by another loopback address": (socket_address(9901), socket_address(9901, "127.0.0.2")),
    "by name": (socket_address(9901), socket_address(9901, "localhost")),
    "by a mapped address": (socket_address(9901), socket_address(9901, "::ffff:127.0.0.1")),
    "by the wildcard": (socket_address(9901), socket_address(9901, "0.0.0.0")),
    "by port as text": (socket_address(9901), {"socketAddress": {"address": "127.0.0.1", "portValue": "9901"}}),
    "by socket": ({"pipe": {"path": "/run/admin.sock", "mode": 384}}, {"pipe": {"path": "/run/admin.sock"}}),
    "by socket, otherwise spelled": (
        {"pipe": {"path": "/run/admin.sock", "mode": 384}},
        {"pipe": {"path": "/run/./admin.sock"}},
    ),
}


@pytest.mark.parametrize("name", ADMIN_CLUSTERS)
def test_a_way_from_a_public_listener_to_the_admin_is_refused(name: str) -> None:
    admin, endpoint = ADMIN_CLUSTERS[name]
    tree = with_admin(admin) | {
        "staticResources": {
            "listeners": [static_listener("open", 8443, "way", "0.0.0.0")],
            "clusters": [static_cluster("way", endpoint)],
        }
    }
    with pytest.raises(BootstrapError, match="leads to Envoy's admin"):
        guard(tree)
    tree["staticResources"]["listeners"] = [static_listener("private", 8443, "way")]
    assert guard(tree).bootstrap == tree


def test_additional_addresses_count_too() -> None:
    listener = static_listener("half", 8443, "way") | {
        "additionalAddresses": [{"address": socket_address(8443, "0.0.0.0")}]
    }
    cluster = static_cluster("way", socket_address(1, "192.0.2.1"))
    endpoint = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]
    endpoint["additionalAddresses"] = [{"address": socket_address(9901)}]
    tree = with_admin(socket_address(9901)) | {"staticResources": {"listeners": [listener], "clusters": [cluster]}}
    with pytest.raises(BootstrapError, match="leads to Envoy's admin"):
        guard(tree)
    listener["additionalAddresses"] = [{"address": socket_address(9901, "127.0.0.1")}]
    with pytest.raises(BootstrapError, match="takes the admin's port"):
        guard(tree)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a: [", "is not YAML"),
        (b"- a", "is not a mapping"),
        (b"", "is not a mapping"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"a: \x00", "is not YAML"),
        (b"a: 1\n---\nb: 2\n", "is not YAML"),
        (b"[" * 100_000, "is not YAML"),
    ],
)
def test_a_text_that_is_no_bootstrap_is_a_one_line_error(text: bytes, reason: str) -> None:
    with pytest.raises(BootstrapError, match=reason) as refused:
        parse_bootstrap(text)
    assert len(str(refused.value).splitlines()) == 1


def test_aliases_cannot_blow_it_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(BootstrapError, match="aliases"):
        parse_bootstrap("\n".join(lines).encode())


def test_json_is_yaml() -> None:
    tree = captured(BOOTSTRAPS[0])
    assert parse_bootstrap(json.dumps(tree).encode()) == tree
