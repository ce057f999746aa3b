"""The built-in Corefile: which server is queried for which names."""

from __future__ import annotations

import pytest

from kumadp.dns.coredns.corefile import CorefileFacts, ForwardMethod, built_in, upstreams
from kumadp.dns.resolvconf import parse

FACTS = CorefileFacts(15053, 15054, 19153, logging=False, binary="/usr/bin/coredns", config_dir="/run/kumadp")
SERVERS = ("192.0.2.53", "2001:db8::53")
CODES = ("NOTIMP", "FORMERR", "NXDOMAIN", "SERVFAIL", "REFUSED")


@pytest.mark.parametrize("method", list(ForwardMethod))
def test_names_of_the_mesh_have_a_separate_block_without_the_resolvers(method: ForwardMethod) -> None:
    mesh, rest = built_in(FACTS, method, SERVERS, ("mesh", "mesh.local")).split("\n.:15053 {")
    assert mesh.startswith("health.kumadp.invalid.:15053 {\n}\nmesh.:15053 mesh.local.:15053 {")
    assert not [server for server in SERVERS if server in mesh]
    # A silent Envoy is followed by the resolvers within the one forward.
    assert "forward . 127.0.0.1:15054 192.0.2.53 2001:db8::53 {\n        policy sequential" in rest


def test_each_method_forwards_to_the_resolvers_on_the_codes() -> None:
    alternate = built_in(FACTS, ForwardMethod.ALTERNATE, SERVERS, ("mesh",))
    assert f"alternate {','.join(CODES)} . 192.0.2.53 2001:db8::53\n" in alternate
    assert "next" not in alternate
    for method in (ForwardMethod.FAILOVER, ForwardMethod.NEXT):
        text = built_in(FACTS, method, SERVERS, ("mesh",))
        assert f"next {' '.join(CODES)}\n" in text
        assert "forward . 192.0.2.53 2001:db8::53 {" in text
        assert ("failover" in text) is (method is ForwardMethod.FAILOVER)


@pytest.mark.parametrize("method", list(ForwardMethod))
def test_without_name_servers_only_envoy_is_queried(method: ForwardMethod) -> None:
    text = built_in(FACTS, method, (), ("mesh",))
    assert text.count("forward . 127.0.0.1:15054 {") == 2
    assert "next" not in text
    assert "alternate" not in text


def test_no_more_upstreams_than_coredns_accepts() -> None:
    many = [f"192.0.2.{number}" for number in range(1, 40)]
    text = built_in(FACTS, ForwardMethod.NEXT, many, ("mesh",))
    forwards = [line.split()[2:-1] for line in text.splitlines() if line.strip().startswith("forward")]
    assert max(len(upstreams) for upstreams in forwards) == 15


def test_queries_are_logged_on_request() -> None:
    noisy = CorefileFacts(15053, 15054, 19153, logging=True, binary="", config_dir="")
    assert built_in(noisy, ForwardMethod.NEXT, SERVERS, ("mesh",)).count("\n    log\n") == 2
    assert "\n    log\n" not in built_in(FACTS, ForwardMethod.NEXT, SERVERS, ("mesh",))


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ("127.0.0.1", "::1")),
        ("# nameserver 192.0.2.53\nsearch example.org\nnameserver\n", ("127.0.0.1", "::1")),
        ("nameserver 192.0.2.53\nnameserver 2001:db8::1\nnameserver 192.0.2.53", ("192.0.2.53", "2001:db8::1")),
        ("nameserver\tfe80::1%eth0 # the router\n nameserver 192.0.2.53", ("fe80::1%eth0", "192.0.2.53")),
        ("nameserver [192.0.2.53]:5353\nnameserver [::1]:5353\n", ("192.0.2.53:5353", "[::1]:5353")),
        ("nameserver [fe80::1%eth0]:5353\n", ("[fe80::1%eth0]:5353",)),
        ("nameserver dns.example.org\nnameserver 300.1.2.3\n", ("127.0.0.1", "::1")),
    ],
)
def test_the_name_servers_of_a_resolv_conf(text: str, servers: tuple[str, ...]) -> None:
    assert upstreams(parse(text)) == servers
