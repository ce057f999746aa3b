"""DNS: queries of clients, answers of servers, resolv.conf, CoreDNS's output, and Corefile templates."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from kumadp.dns import message, resolvconf
from kumadp.dns.coredns import corefile_check
from kumadp.dns.coredns.corefile import CorefileFacts
from kumadp.dns.coredns.template import render
from kumadp.dns.message import A, encode_answer, encode_opt, encode_query, parse_query
from kumadp.dns.resolver.answer import Forward, answer, fast_answer, relayed_answer
from kumadp.dns.resolver.table import Table
from kumadp.errors import SettingsError
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from kumadp.dns.message import Query

_NAMES = {"a.mesh": ["10.0.0.1", "fd00::1"], "b.svc.mesh.local": [f"10.0.0.{n}" for n in range(60)], "c.x.mesh": []}
_FACTS = CorefileFacts(53, 15053, 19153, True, "/usr/bin/coredns", "/run/kumadp")
_COREFILE = b""".:{{ .CoreDNSPort }} {
    forward . 127.0.0.1:{{ .EnvoyDNSPort }}
    {{- if .CoreDNSLogging }}
    log{{ else if not .Enabled }}
    errors
    {{- /* remark */ -}}
    {{ else }}{{ end }}
    prometheus localhost:{{ .PrometheusPort }}
}
"""


def _with_opt(query: bytes, *, dnssec: bool = True) -> bytes:
    return query[:10] + b"\0\1" + query[12:] + encode_opt(dnssec=dnssec)


def _queries() -> list[bytes]:
    plain = [encode_query(name, kind, number=7) for name in (*_NAMES, "other.example") for kind in (1, 28, 255, 16)]
    return [*plain, *map(_with_opt, plain), message.encode_status_query(3)]


def _query(data: bytes) -> None:
    table = Table(_NAMES.items(), suffixes=("mesh", "mesh.local"))
    for transport in ("udp", "tcp"):
        reply = answer(data, table, transport)
        if isinstance(reply, bytes):
            assert reply[:2] == data[:2]
            assert reply[2] & 0x80
            assert transport == "tcp" or len(reply) <= message.LARGEST_UDP
        fast = fast_answer(data, table)
        assert fast is None or transport == "tcp" or _same(fast, reply), (fast, reply)
        if isinstance(reply, Forward):
            assert parse_query(data) == reply.query
            relayed_answer(reply.query, data, "udp")


def _same(fast: bytes, slow: bytes | Forward | None) -> bool:
    # The order and number of the records are the same; only names are compared in the client's letter case.
    return isinstance(slow, bytes) and fast == slow


_SENT = encode_query("Other.Example", A, number=7)
_QUESTION = message.question_of(_SENT)


def _of_client() -> Query:
    query = parse_query(_with_opt(_SENT))
    assert not isinstance(query, bytes)
    assert query is not None
    return query


def _answers() -> list[bytes]:
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes((10, 0, 0, 1))
    return [
        encode_answer(_of_client(), 0, 1, record),
        encode_answer(_of_client(), 3),
        encode_answer(_of_client(), 0, 40, record * 40, truncated=True),
        message.encode_header(7, 0, message.REFUSED),
        _SENT,
    ]


def _answer(data: bytes) -> None:
    for any_case in (False, True):
        if not message.is_answer(data, 7, _QUESTION, any_case=any_case):
            continue
        message.is_truncated(data)
        message.is_authoritative(data)
        for query in (_of_client(), _of_client()._replace(size=message.PLAIN_SIZE, edns=False)):
            assert len(relayed_answer(query, data, "udp")) <= max(query.size, message.PLAIN_SIZE)
            assert relayed_answer(query, data, "tcp")[:2] == data[:2]


def _wire_query() -> st.SearchStrategy[bytes]:
    label = st.binary(max_size=70).map(lambda text: bytes([len(text) & 0xFF]) + text)
    name = st.one_of(st.sampled_from([message.wire_name(name) for name in _NAMES]), st.lists(label).map(b"".join))
    record = st.tuples(name, st.binary(min_size=8, max_size=8), st.binary(max_size=20)).map(
        lambda parts: parts[0] + parts[1] + struct.pack("!H", len(parts[2])) + parts[2]
    )
    header = st.tuples(*[st.sampled_from([0, 1, 2, 0x100, 0x8000, 0xFFFF])] * 6).map(lambda n: struct.pack("!6H", *n))
    return st.tuples(header, name, st.binary(max_size=4), st.lists(record, max_size=9).map(b"".join)).map(b"".join)


def _resolv_conf(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    conf = resolvconf.parse(text, text[-40:])
    assert conf.servers
    for server in conf.servers:
        resolvconf.is_own(server, [("::", 53)], {"127.0.0.1"})


def _resolv_lines() -> st.SearchStrategy[bytes]:
    word = st.sampled_from(
        ["nameserver", "options", "search", "10.0.0.1", "[::1]:53", "fe80::1%eth0", "timeout:3", "attempts:٣", "127.1"]
    )
    line = st.lists(st.one_of(word, st.text(max_size=12)), max_size=6).map(" ".join)
    return st.lists(line, max_size=20).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


def _template(data: bytes) -> None:
    rendered = render(data.decode("utf-8", "replace"), _FACTS.variables(), "template")
    for line in range(1, min(rendered.text.count("\n") + 2, 20)):
        rendered.line_in_template(line)


def _template_parts() -> st.SearchStrategy[bytes]:
    action = st.sampled_from(
        ["{{ if .Enabled }}", "{{- else -}}", "{{ end }}", "{{ else if not .ProxyPort }}", "{{ .CoreDNSPort }}", "{{/*"]
    )
    return st.lists(st.one_of(action, st.text(max_size=8)), max_size=30).map(
        lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
    )


def _coredns_output(data: bytes) -> None:
    corefile_check._parse(data.decode("utf-8", "replace"), "." * 20 + "\n{\n}\n")


TARGETS = (
    Target(
        "dns-query", _query, _queries, grammar=_wire_query, largest=1024, lines=60, lines_base=8000, memory_base=150_000
    ),
    Target("dns-answer", _answer, _answers, grammar=_wire_query, largest=1024),
    Target(
        "resolv-conf",
        _resolv_conf,
        lambda: [
            b"nameserver 127.0.0.53\noptions edns0 trust-ad timeout:3 attempts:2 rotate use-vc\nsearch a.b\n",
            b"# remark\nnameserver [fe80::1%2]:5353 ; x\nnameserver 0x7f.1\nnameserver ::ffff:10.0.0.1\n",
        ],
        words=(b"nameserver ", b"options ", b"timeout:", b"attempts:", b"[::1]:", b"%", b"no-reload"),
        grammar=_resolv_lines,
        lines=80,
        memory=250,
    ),
    Target(
        "corefile-template",
        _template,
        lambda: [_COREFILE],
        (SettingsError,),
        (b"{{", b"}}", b"{{-", b"-}}", b"{{ if ", b"{{ else }}", b"{{ end }}", b".Enabled", b"/*", b"*/", b" if not "),
        _template_parts,
        lines=60,
        lines_base=5000,
        memory=300,
    ),
    Target(
        "coredns-output",
        _coredns_output,
        lambda: [
            b"/run/kumadp/Corefile.aa.trial:2 - Error during parsing: Unknown directive 'x'\n",
            b"[INFO] plugin\nCorefile:7 - cannot serve kumadp-trial.invalid.:1 - it is already defined\n",
        ],
        words=(b"/Corefile:", b" - ", b": ", b"kumadp-trial.invalid", b"already defined"),
    ),
)
