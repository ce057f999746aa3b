"""Requests to the application probe proxy and its answers: rows for kumadp, and for kuma-dp 2.13.5 if it differs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A request, and the answer: code and word. ``peer`` is kuma-dp's if it differs; ``why`` is the reason."""

    name: str
    path: str
    code: int
    word: str
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    peer: tuple[int, str] | None = None
    why: str = ""


OK, SICK, NONE = "HEALTHY", "UNHEALTHY", "UNKNOWN"
HTTPS = {"X-Kuma-Probes-Scheme": "HTTPS"}


def grpc(service: str) -> dict[str, str]:
    return {"X-Kuma-Probes-GRPC-Service": service}


def seconds(text: str) -> dict[str, str]:
    return {"X-Kuma-Probes-Timeout": text}


TABLE = [
    Row("http", "/{web}/code/200", 200, OK),
    Row("no path", "/{web}", 200, OK),
    Row("http 204", "/{web}/code/204", 200, OK),
    Row("http 399", "/{web}/code/399", 200, OK),
    Row("http 400", "/{web}/code/400", 400, SICK),
    Row("http 404", "/{web}/code/404", 404, SICK),
    Row("http 503", "/{web}/code/503", 503, SICK),
    Row("http 599", "/{web}/code/599", 599, SICK),
    Row("always a GET", "/{web}/code/200", 200, OK, method="POST"),
    Row("query and encoding", "/{web}/a%2Fb%20c?x=%2F", 200, OK),
    Row("redirect on the host", "/{web}/loop/3", 200, OK),
    Row("ten requests", "/{web}/loop/8", 200, OK),
    Row("eleven requests", "/{web}/loop/9", 503, SICK),
    Row("absolute redirect on the host", "/{web}/absolute/code/200", 200, OK),
    Row("absolute redirect to an error", "/{web}/absolute/code/404", 404, SICK),
    Row("redirect without a place", "/{web}/nowhere", 200, OK),
    Row("redirect elsewhere", "/{web}/to/other", 200, OK, peer=(503, SICK), why="kubelet does not follow it"),
    Row(
        "host", "/{web}/host", 200, OK, {"X-Kuma-Probes-Host": "web.example"}, peer=(421, SICK), why="it has no effect"
    ),
    Row("host kept", "/{web}/moved", 200, OK, {"X-Kuma-Probes-Host": "web.example"}, peer=(421, SICK), why="the same"),
    Row("no other host", "/{web}/host", 421, SICK),
    Row("hangs", "/{web}/hang", 503, SICK),
    Row("bad timeout", "/{web}/hang", 503, SICK, seconds("1s")),
    Row("half a body", "/{web}/half", 503, SICK),
    Row("endless body", "/{web}/endless", 200, OK),
    Row("large head", "/{web}/large", 200, OK),
    Row("no http", "/{web}/garbage", 503, SICK),
    Row("no answer", "/{silent}/", 503, SICK),
    Row("nobody there", "/{closed}/", 503, SICK),
    Row("port 0", "/0/", 503, SICK),
    Row("https", "/{tls}/code/200", 200, OK, HTTPS),
    Row("https 500", "/{tls}/code/500", 500, SICK, HTTPS),
    Row("http to https", "/{tls}/code/200", 503, SICK),
    Row("https to http", "/{web}/code/200", 503, SICK, HTTPS),
    Row(
        "https in small letters",
        "/{tls}/",
        200,
        OK,
        {"X-Kuma-Probes-Scheme": "https"},
        peer=(503, SICK),
        why="verified",
    ),
    Row("no such scheme", "/{web}/", 503, SICK, {"X-Kuma-Probes-Scheme": "GOPHER"}),
    Row("tcp", "/tcp/{silent}", 200, OK),
    Row("tcp and more", "/tcp/{silent}/anything/at?all", 200, OK),
    Row("tcp closed", "/tcp/{closed}", 503, SICK),
    Row("tcp full", "/tcp/{full}", 503, SICK),
    Row("grpc", "/grpc/{grpc}", 200, OK),
    Row("grpc service", "/grpc/{grpc}", 200, OK, grpc("up")),
    Row("grpc long name", "/grpc/{grpc}", 200, OK, grpc("s" * 100)),
    Row("grpc not serving", "/grpc/{grpc}", 503, SICK, grpc("down")),
    Row("grpc unknown", "/grpc/{grpc}", 503, SICK, grpc("unknown")),
    Row("grpc hangs", "/grpc/{grpc}", 503, SICK, grpc("hang")),
    Row("grpc without health", "/grpc/{bare}", 503, SICK),
    Row("grpc to http", "/grpc/{web}", 503, SICK),
    Row("grpc to silence", "/grpc/{silent}", 503, SICK),
    Row("grpc closed", "/grpc/{closed}", 503, SICK),
    Row("root", "/", 503, NONE),
    Row("a word", "/healthz", 503, NONE),
    Row("tcp without port", "/tcp/", 503, NONE),
    Row("tcp to a word", "/tcp/http", 503, NONE),
    Row("grpc to a word", "/grpc/x", 503, NONE),
    Row("port too large", "/65536/", 503, NONE),
    Row("port far too large", "/99999999999999999999/", 503, NONE),
    Row("negative port", "/-1/", 503, NONE),
    Row("not clean", "//{web}/./x", 307, ""),
    Row("tcp without slash", "/tcp", 307, ""),
]
