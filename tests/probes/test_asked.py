"""Requests to the application probe proxy, read as kuma-dp reads them."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from kumadp.probes.asked import DEFAULT_TIMEOUT, Asked, Redirect, clean_path, read_request, read_scheme, read_timeout


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/8080", Asked("http", 8080)),
        ("/8080/", Asked("http", 8080)),
        ("/8080/a/b", Asked("http", 8080, "/a/b")),
        ("/8080/a/", Asked("http", 8080, "/a/")),
        # Decoded and encoded again, as Go does.
        ("/8080/%61%2Fb%3F!'(*)~", Asked("http", 8080, "/a/b%3F%21%27%28%2A%29~")),
        ("/8080/%ff", Asked("http", 8080, "/%FF")),
        ("/8080/%2e%2e/a", Asked("http", 8080, "/../a")),
        ("/08080/a", Asked("http", 8080, "/a")),
        ("/tcp/8080", Asked("tcp", 8080)),
        ("/tcp/8080/whatever", Asked("tcp", 8080)),
        ("/grpc/65535", Asked("grpc", 65535)),
        ("/tcp/65536", None),
        ("/tcp/8080x", None),
        ("/8080x", None),
        ("/8080%0a/a", None),
        ("/8080/%0a", None),
        ("/TCP/8080", None),
        ("/٣", None),
        ("/tcp/", None),
        ("/", None),
        ("/tcp", Redirect("/tcp/")),
        ("/grpc", Redirect("/grpc/")),
        ("", Redirect("/")),
        ("//8080", Redirect("/8080")),
        ("/tcp/../8080", Redirect("/8080")),
    ],
)
def test_paths(path: str, asked: Asked | Redirect | None) -> None:
    assert read_request(path, "") == asked


def test_the_query_is_kept_as_it_is() -> None:
    assert read_request("/8080/a", "b=%2f&c") == Asked("http", 8080, "/a", "b=%2f&c")
    assert read_request("//8080/a", "b=%2f&c") == Redirect("/8080/a?b=%2f&c")


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
    assert read_timeout(CIMultiDict({"X-Kuma-Probes-Timeout": text})) == seconds
    assert read_timeout(CIMultiDict()) == DEFAULT_TIMEOUT


@pytest.mark.parametrize(
    ("text", "scheme"), [("", "http"), ("HTTP", "http"), ("HTTPS", "https"), ("https", "https"), ("GOPHER", None)]
)
def test_schemes(text: str, scheme: str | None) -> None:
    assert read_scheme(CIMultiDict({"X-Kuma-Probes-Scheme": text})) == scheme
