"""The smallest inputs that were once not taken as documented, each as it was found."""

from __future__ import annotations

import json

import pytest

from kumadp.bootstrap.comparison import differences
from kumadp.envoy.admin_proof import listening_paths
from tests.fuzz.catalogue import TARGETS
from tests.fuzz.runner import Runner

_BASE64 = {
    "dynamicResources": {
        "adsConfig": {
            "grpcServices": [
                {
                    "googleGrpc": {
                        "targetUri": "a:1",
                        "channelCredentials": {"sslCredentials": {"rootCerts": {"inlineBytes": "é"}}},
                    }
                }
            ]
        }
    }
}
FOUND = [
    # A sample of Envoy without the brace that ends its labels: an exception ended the whole scrape.
    ("metrics-envoy", b'{envoy_cluster_name=""'),
    # A value with letters before a timestamp, which stayed in seconds and was read as milliseconds.
    ("metrics-openmetrics-to-text", b"m NaN 1."),
    ("metrics-openmetrics-to-text", b"m 1e5 1.5"),
    # A carriage return in the value of a label was taken for a line end, and the label broken in two.
    ("metrics-openmetrics", b'#TYPE m gauge\nm{"",s="\r",k="h"} 3'),
    # A CA that is not ASCII raised another error than one that is not base64.
    ("bootstrap", json.dumps(_BASE64).encode()),
    # Reads of small files allocated as much as the largest may have: 4 MB, 32 MB, 1 GB.
    ("state-file", b"{}"),
    ("bootstrap-file", b"{}"),
    ("last-good-file", b""),
    # A hint for each unknown key of the settings file, each a comparison with all keys.
    ("settings-file", b"".join(b"dataplan%dx: 1\n" % number for number in range(250))),
    # A timeout in an OTEL_ variable that is larger than a float.
    ("otel-variables", b"1" * 313),
    # Counters of a control group in another form than the kernel's.
    ("proc-cgroup", b"\xc0"),
    ("proc-cgroup", b" "),
]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once_is_taken_as_documented(name: str, data: bytes) -> None:
    runner = Runner(TARGETS[name])
    runner.check(data)
    runner.measure(data)


def test_timestamps_are_converted_whatever_the_value_is() -> None:
    from kumadp.exposition.reader import ExpositionReader
    from kumadp.metrics.formats import Format, FormatConverter

    reader = ExpositionReader(checks=True, is_openmetrics=True)
    pieces = [*reader.feed(b'm NaN 1.5\nm{a="b"} +Inf 2\nm 1e5 3\n'), *reader.end()]
    converter = FormatConverter(Format.OPENMETRICS_1, Format.TEXT)
    written = b"".join(converter.convert(piece).samples for piece in pieces)
    assert written == b'm NaN 1500\nm{a="b"} +Inf 2000\nm 1e5 3000\n'


def test_a_dataplane_that_is_nested_deeper_than_can_be_walked_is_compared_as_text() -> None:
    for levels in (50, 500, 900):
        text = "[" * levels + "]" * levels
        trees = [{"node": {"metadata": {"dataplane.resource": each}}} for each in (text, text.replace("[]", "[1]"))]
        assert differences(trees[0], trees[0]) == []
        assert [change.path for change in differences(*trees)] != []


def test_lines_that_another_process_adds_to_the_table_of_unix_sockets() -> None:
    """The path of a socket may have line ends: a line that is no number at that place ended the proof of the admin."""
    head = b"Num       RefCount Protocol Flags    Type St Inode Path\n"
    planted = b"ffff0001: 00000002 00000000 00010000 0001 01 7 /tmp/x\na b c no-number e f 8 /tmp/y\x0ba\x85b\n"
    real = b"ffff0000: 00000002 00000000 00010000 0001 01 8 /run/kumadp/admin.sock\n"
    assert listening_paths(head + planted + real, {"8"}) == ["/run/kumadp/admin.sock"]
    connected = real.replace(b"00010000", b"00000000")
    assert listening_paths(head + planted + connected, {"8"}) == []
    assert listening_paths(real.replace(b"admin.sock", b"a\xffb c"), {"8"}) == ["/run/kumadp/a\udcffb c"]
