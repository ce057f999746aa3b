"""Requests to the application probe proxy are parsed as kuma-dp parses them."""

from __future__ import annotations

import pytest

from kumadp.host.net.http1.fields import FieldList
from kumadp.probes.probe_request import (
    DEFAULT_TIMEOUT,
    CleanPathRedirect,
    ProbeRequest,
    clean_path,
    parse_request,
    parse_scheme,
    parse_timeout,
)


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("/8080", ProbeRequest("http", 8080)),
        ("/8080/", ProbeRequest("http", 8080)),
        ("/8080/a/b", ProbeRequest("http", 8080, "/a/b")),
        ("/8080/a/", ProbeRequest("http", 8080, "/a/")),
        # Decoded and encoded again, as Go does.
        ("/8080/%61%2Fb%3F!'(*)~", ProbeRequest("http", 8080, "/a/b%3F%21%27%28%2A%29~")),
        ("/8080/%ff", ProbeRequest("http", 8080, "/%FF")),
        ("/8080/%2e%2e/a", ProbeRequest("http", 8080, "/../a")),
        ("/08080/a", ProbeRequest("http", 8080, "/a")),
        ("/tcp/8080", ProbeRequest("tcp", 8080)),
        ("/tcp/8080/whatever", ProbeRequest("tcp", 8080)),
        ("/grpc/65535", ProbeRequest("grpc", 65535)),
        ("/tcp/65536", None),
        ("/tcp/8080x", None),
        ("/8080x", None),
        ("/8080%0a/a", None),
        ("/8080/%0a", None),
        ("/TCP/8080", None),
        ("/٣", None),
        ("/tcp/", None),
        ("/", None),
        ("/tcp", CleanPathRedirect("/tcp/")),
        ("/grpc", CleanPathRedirect("/grpc/")),
        ("", CleanPathRedirect("/")),
        ("//8080", CleanPathRedirect("/8080")),
        ("/tcp/../8080", CleanPathRedirect("/8080")),
    ],
)
def test_paths(path: str, parsed: ProbeRequest | CleanPathRedirect | None) -> None:
    assert parse_request(path, "") == parsed


def test_the_query_is_unchanged() -> None:
    assert parse_request("/8080/a", "b=%2f&c") == ProbeRequest("http", 8080, "/a", "b=%2f&c")
    assert parse_request("//8080/a", "b=%2f&c") == CleanPathRedirect("/8080/a?b=%2f&c")


@pytest.mark.parametrize(
    ("path", "clean"),
    [("/", "/"), ("", "/"), ("/a/./b//c/", "/a/b/c/"), ("/a/..", "/"), ("/../..", "/"), ("/a/../", "/"), ("a", "/a")],
)
def test_clean_paths(path: str, clean: str) -> None:
    assert clean_path(path) == clean


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1.0),
        ("30", 30.0),
        ("+5", 5.0),
        ("999999999999", 86400.0),
        # No limit with kuma-dp, for HTTP and TCP.
        ("0", DEFAULT_TIMEOUT),
        ("-1", DEFAULT_TIMEOUT),
        ("", DEFAULT_TIMEOUT),
        ("1.5", DEFAULT_TIMEOUT),
        ("1s", DEFAULT_TIMEOUT),
        ("٣", DEFAULT_TIMEOUT),
        ("9" * 30, DEFAULT_TIMEOUT),
    ],
)
def test_timeouts(text: str, seconds: float) -> None:
    assert parse_timeout(FieldList([("X-Kuma-Probes-Timeout", text)])) == seconds
    assert parse_timeout(FieldList()) == DEFAULT_TIMEOUT


@pytest.mark.parametrize(
    ("text", "scheme"), [("", "http"), ("HTTP", "http"), ("HTTPS", "https"), ("https", "https"), ("GOPHER", None)]
)
def test_schemes(text: str, scheme: str | None) -> None:
    assert parse_scheme(FieldList([("X-Kuma-Probes-Scheme", text)])) == scheme
