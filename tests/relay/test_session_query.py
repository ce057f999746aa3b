"""What a session takes from a bootstrap that it queries for a stream, and what it reports if there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.prepare import Fetched, Prepared
from kumadp.bootstrap.rewrite import rewrite_for_relay
from kumadp.core.status import Status
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.messages import Request
from kumadp.relay.node import encode_node
from kumadp.relay.refusal import StreamRefusal
from kumadp.relay.session import RelaySession, Resumption, SessionOptions
from kumadp.relay.upstream import UpstreamState
from tests.support.scripted_control_plane import CAPTURES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from ssl import SSLContext

    from kumadp.errors import ControlPlaneRefused

SOTW, DELTA = XdsProtocol.SOTW, XdsProtocol.DELTA


def fetched(capture: str) -> Fetched:
    return Fetched(parse_bootstrap((CAPTURES / capture / "bootstrap.yaml").read_bytes()), None, 0.0)


KUMA_2, KUMA_3 = fetched("kuma-2.14.3/dataplane"), fetched("kuma-3.0-dev/full")


class Access:
    """A control plane whose next bootstrap is ``answer``, and ``renewed_answer`` for the Envoy of a reload."""

    pending = False
    urls: Sequence[str] = ("https://localhost:5678",)

    def __init__(self, answer: Fetched | None, renewed_answer: Fetched | None = None) -> None:
        self.answer, self.renewed_answer = answer, renewed_answer
        self.on_query: Callable[[], object] = lambda: None

    async def query_bootstrap(self, *, renewed: bool) -> Fetched | None:
        self.on_query()
        return self.renewed_answer if renewed else self.answer

    def advise(self, text: str) -> str:
        return "use a Dataplane" if "unsupported proxy type" in text else ""

    def token(self) -> str:
        return ""

    def tls(self, ca_inline: bytes | None) -> SSLContext:
        raise AssertionError(ca_inline)


class Observer:
    def on_refused(self, error: ControlPlaneRefused) -> None:
        raise AssertionError(error)

    def on_opened(self) -> None:
        """Nobody waits."""

    def on_accepted(self, type_url: str) -> None:
        """Nobody waits."""

    def on_answered(self, type_url: str) -> None:
        """Nobody waits."""


def session(folder: Path, access: Access, first: Fetched) -> tuple[RelaySession, Status]:
    status = Status("web", "control plane", "default")
    upstream = rewrite_for_relay(first.tree, str(folder / "xds.sock")).upstream
    prepared = Prepared(folder / "bootstrap.yaml", TcpAdmin("127.0.0.1", 9901), None, True, first, upstream)
    options = SessionOptions(folder / "xds.sock", status, lambda _pid: 0, Resumption())
    return RelaySession(options, access, prepared, Observer()), status


def next_node(made: RelaySession) -> bytes:
    """The Node that the next stream begins with."""
    request = made._machine.upstream_opened()[0].request  # type: ignore[union-attr]
    assert isinstance(request, Request)
    return request.node


@pytest.mark.parametrize(("first", "protocol"), [(KUMA_2, SOTW), (KUMA_3, DELTA)])
async def test_the_bootstrap_in_hand_chooses_the_first_stream(
    tmp_path: Path, first: Fetched, protocol: XdsProtocol
) -> None:
    made, _ = session(tmp_path, Access(None), first)
    assert made.relay.status()["protocol"] == protocol
    assert next_node(made) == encode_node(first.tree["node"])


async def test_a_newer_bootstrap_names_the_protocol_and_renews_the_node(tmp_path: Path) -> None:
    made, status = session(tmp_path, Access(KUMA_3), KUMA_2)
    assert await made._query_protocol() is DELTA
    assert next_node(made) == encode_node(KUMA_3.tree["node"]) != encode_node(KUMA_2.tree["node"])
    assert status.warnings == {}


def prepared_of(made: RelaySession, fetched: Fetched) -> Prepared:
    return replace(made._prepared, fetched=fetched)


async def test_a_query_during_a_reload_is_for_the_envoy_that_starts(tmp_path: Path) -> None:
    made, _ = session(tmp_path, Access(KUMA_2, KUMA_3), KUMA_2)
    made.renew_early(prepared_of(made, KUMA_3))
    assert await made._query_protocol() is DELTA
    assert next_node(made) == encode_node(KUMA_3.tree["node"])
    made.go_back()
    assert next_node(made) == encode_node(KUMA_2.tree["node"])
    assert await made._query_protocol() is SOTW


async def test_the_node_of_a_query_that_a_failed_reload_overtook_is_dropped(tmp_path: Path) -> None:
    access = Access(KUMA_2, KUMA_3)
    made, _ = session(tmp_path, access, KUMA_2)
    made.renew_early(prepared_of(made, KUMA_3))
    access.on_query = made.go_back
    await made._query_protocol()
    assert next_node(made) == encode_node(KUMA_2.tree["node"])


async def test_after_a_failed_reload_an_upgraded_control_plane_gets_its_node(tmp_path: Path) -> None:
    made, _ = session(tmp_path, Access(KUMA_3), KUMA_2)
    made.go_back()
    assert await made._query_protocol() is DELTA
    assert next_node(made) == encode_node(KUMA_3.tree["node"])
    # A reload that fails later takes nothing back that it has not sent.
    made.go_back()
    assert next_node(made) == encode_node(KUMA_3.tree["node"])


async def test_without_a_newer_bootstrap_all_stays(tmp_path: Path) -> None:
    access = Access(None)
    made, status = session(tmp_path, access, KUMA_2)
    assert await made._query_protocol() is None
    assert next_node(made) == encode_node(KUMA_2.tree["node"])
    access.answer = KUMA_2
    assert await made._query_protocol() is SOTW
    assert status.warnings == {}


@pytest.mark.parametrize(
    ("reason", "warning"),
    [
        ('unsupported proxy type "ingress"', 'unsupported proxy type "ingress" (use a Dataplane)'),
        ("no such mesh", "no such mesh"),
    ],
)
def test_a_refused_stream_is_reported_with_what_to_change(tmp_path: Path, reason: str, warning: str) -> None:
    made, status = session(tmp_path, Access(KUMA_3), KUMA_3)
    made.relay.facts.state, made.relay.facts.last_error = UpstreamState.BACKOFF, reason
    made.relay.facts.refusal = StreamRefusal.OTHER
    made._report()
    assert status.warnings == {"control plane": warning}


@pytest.mark.parametrize(("running", "sent"), [("former", KUMA_2), ("edited", KUMA_3), ("", KUMA_3)])
async def test_a_query_for_an_edited_dataplane_chooses_the_protocol_alone(
    tmp_path: Path, running: str, sent: Fetched
) -> None:
    """A kumadp adopts an Envoy, its file was edited after the other one read it, and the reload fails."""
    made, _ = session(tmp_path, Access(replace(KUMA_3, dataplane="edited")), replace(KUMA_2, dataplane=running))
    assert await made._query_protocol() is DELTA
    assert next_node(made) == encode_node(sent.tree["node"])
