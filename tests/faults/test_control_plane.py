"""The control plane is away, broken, hostile or another one: traffic goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.faults import OWN, Row, fault_rows
from tests.support.poll import poll
from tests.support.readonly import over
from tests.support.rig import NODE, SOON
from tests.support.scripted_control_plane import TOKEN, Answer
from tests.support.xds.faults import Garbage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.faults import FaultRig

    Act = Callable[[FaultRig], object]

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

GROUP = "Control plane"
# Seconds that a fault lasts: several attempts.
LASTS = 4.0
# A stream that it refuses, or cannot open.
NO_STREAM = r"(no stream to|stream to) the control plane"
BOOTSTRAP = r"bootstrap"


def for_a_while(begin: Act, end: Act, *, seconds: float = LASTS) -> Act:
    """Return what begins and ends a fault, and waits for the stream."""

    def act(rig: FaultRig) -> None:
        begin(rig)
        time.sleep(seconds)
        end(rig)
        opened(rig)

    return act


def opened(rig: FaultRig) -> None:
    """Wait until the control plane serves the data plane again."""
    rig.wait_state(rig.last, "open")
    poll(lambda: rig.plane.stream(NODE), what="the stream", deadline=SOON)


def dropping(change: Act) -> Act:
    """Return ``change``, followed by the end of all connections."""

    def act(rig: FaultRig) -> None:
        change(rig)
        rig.plane.drop_connections()

    return act


def answers(answer: Answer, times: int = 200) -> Act:
    """Return a fault: each request for a bootstrap is answered with this."""

    def begin(rig: FaultRig) -> None:
        rig.plane.answers = [answer] * times
        rig.plane.drop_connections()

    def end(rig: FaultRig) -> None:
        rig.plane.answers = []

    return for_a_while(begin, end)


def show_certificate(rig: FaultRig, *names: str, days: float = 30.0) -> None:
    """Show new connections a certificate of the known CA for these names, which ends in so many days."""
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=days)
    context = rig.plane._context
    assert context is not None
    issued = rig.plane.authority.issue_cert(*names, not_before=ends - datetime.timedelta(days=60), not_after=ends)
    issued.configure_cert(context)


def good_certificate(rig: FaultRig) -> None:
    show_certificate(rig, "localhost", "127.0.0.1")


def misbehave(**faults: object) -> Act:
    """Return what changes `Faults` of the control plane and breaks the connections."""

    def begin(rig: FaultRig) -> None:
        for name, value in faults.items():
            setattr(rig.plane.faults, name, value)
        rig.plane.drop_connections()

    return begin


def end_streams_each_second(rig: FaultRig) -> None:
    for _ in range(12):
        time.sleep(1.0)
        rig.plane.end_streams()
    opened(rig)


def reject_a_cluster(rig: FaultRig) -> None:
    daemon = rig.last
    rig.plane.break_clusters("backend")
    poll(lambda: rig.relay(daemon)["withheld_count"], what="a rejection", deadline=SOON)
    rig.plane.mend_clusters("backend")
    poll(lambda: not rig.relay(daemon)["withheld_count"], what="no rejection", deadline=SOON)


def change_version(rig: FaultRig) -> None:
    for version in ("2.14.3", "2.13.5"):
        rig.plane.upgrade(version)
        opened(rig)


def lose_the_store(rig: FaultRig) -> None:
    rig.plane.kill()
    time.sleep(1.0)
    rig.plane.start()
    opened(rig)


def replace_the_ca(rig: FaultRig) -> None:
    rig.plane.renew_certificate(trustme.CA())
    rig.plane.drop_connections()
    time.sleep(LASTS)
    rig.plane.write_ca(rig.ca)
    opened(rig)


@contextlib.contextmanager
def forwarded(host: str, port: int) -> Iterator[None]:
    """Forward connections to this address of loopback to the same port of 127.0.0.1."""
    stopped = threading.Event()
    ends: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(server: socket.socket) -> None:
        while not stopped.is_set():
            with contextlib.suppress(OSError):
                client, _ = server.accept()
                other = socket.create_connection(("127.0.0.1", port))
                ends.extend((client, other))
                for pair in ((client, other), (other, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server((host, port)) as server:
        server.settimeout(0.2)
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            for end in ends:
                end.close()


def _token(text: str) -> Act:
    return dropping(lambda rig: rig.token.write_text(text))


def _renewed(rig: FaultRig) -> None:
    rig.renew_token()


def _folder_for_token(rig: FaultRig) -> None:
    rig.token.unlink()
    rig.token.mkdir()


def _token_again(rig: FaultRig) -> None:
    rig.token.rmdir()
    rig.renew_token()


HTML = Answer(200, b"<!DOCTYPE html><html><body>Welcome</body></html>", {"content-type": "text/html"})
LARGE = Answer(200, b'{"bootstrap":"' + b"A" * (50 << 20) + b'"}', {"content-type": "application/json"})
SLOW = Answer(200, b"{" * 1000, {"content-type": "application/json"}, drip=1.0)

ROWS = (
    Row(
        "refused",
        for_a_while(lambda rig: rig.plane.gone(), lambda rig: rig.plane.back()),
        NO_STREAM,
        # `make test` runs other tests at the same time: a probe may take more than its second.
        loses=OWN,
        often=True,
    ),
    Row(
        "black hole: connections are accepted, nothing is read",
        for_a_while(dropping(lambda rig: rig.plane.deafen()), lambda rig: rig.plane.deafen(deaf=False), seconds=12.0),
        NO_STREAM,
        loses=(),
    ),
    Row(
        "certificate expired",
        for_a_while(dropping(lambda rig: show_certificate(rig, "localhost", days=-1.0)), good_certificate),
        r"certificate",
        loses=(),
    ),
    Row(
        "certificate for another name",
        for_a_while(dropping(lambda rig: show_certificate(rig, "other.example")), good_certificate),
        r"certificate",
        loses=(),
    ),
    Row("CA replaced, its file later", replace_the_ca, r"certificate", loses=()),
    Row("bootstrap: a page of HTML", answers(HTML), BOOTSTRAP, loses=()),
    Row("bootstrap: garbage", answers(Answer(200, b"\x00\xff\xfe" * 999)), BOOTSTRAP, loses=()),
    Row("bootstrap: 50 MB", answers(LARGE, 2), BOOTSTRAP, loses=()),
    Row("bootstrap: one byte a second", answers(SLOW), loses=()),
    Row("bootstrap: redirect", answers(Answer(307, b"", {"location": "/bootstrap"})), BOOTSTRAP, loses=()),
    Row("bootstrap: HTTP 500", answers(Answer(500, b"internal error")), BOOTSTRAP, loses=()),
    Row(
        "stream: no HTTP/2", for_a_while(misbehave(garbage=Garbage.BYTES), misbehave(garbage=None)), NO_STREAM, loses=()
    ),
    Row("stream: no message", for_a_while(misbehave(garbage=Garbage.MESSAGE), misbehave(garbage=None)), loses=()),
    Row("stream: no resources", for_a_while(misbehave(garbage=Garbage.RESOURCE), misbehave(garbage=None)), loses=()),
    Row(
        "stream: silent for 20 s", for_a_while(misbehave(silent=True), misbehave(silent=False), seconds=20.0), loses=()
    ),
    Row("stream closed every second", end_streams_each_second, NO_STREAM, loses=()),
    Row("configuration rejected by Envoy", reject_a_cluster, r"[Rr]eject|withheld", loses=()),
    Row("2.13 replaced by 2.14, and back", change_version, loses=()),
    Row("store lost", lose_the_store, NO_STREAM, loses=()),
    Row(
        "token expired",
        for_a_while(
            misbehave(refuse_token=lambda _token: "token is expired"), misbehave(refuse_token=lambda _token: "")
        ),
        NO_STREAM,
        loses=(),
    ),
    Row("token half-written", for_a_while(_token(TOKEN[:12]), _renewed), r"token", loses=()),
    Row("token deleted", for_a_while(dropping(lambda rig: rig.token.unlink()), _renewed), r"token", loses=()),
    Row("token unreadable: a folder", for_a_while(dropping(_folder_for_token), _token_again), r"token", loses=()),
)


@fault_rows(ROWS)
def test_control_plane(fault_rig: FaultRig, row: Row) -> None:
    row.run(fault_rig)


def _with_hosts(rig: FaultRig) -> None:
    hosts = rig.folder / "hosts"
    hosts.write_text("127.0.0.2 localhost\n")
    rig.prefix = over("/etc/hosts", hosts)


def _move(rig: FaultRig) -> None:
    (rig.folder / "hosts").write_text("127.0.0.1 localhost\n")


MOVED = Row("its name has another address", _move, NO_STREAM, loses=(), prepare=_with_hosts)


@fault_rows([MOVED])
def test_address(fault_rig: FaultRig, row: Row) -> None:
    with contextlib.ExitStack() as forward:
        forward.enter_context(forwarded("127.0.0.2", fault_rig.plane.port))

        def move(rig: FaultRig) -> None:
            row.act(rig)
            forward.close()
            opened(rig)

        dataclasses.replace(row, act=move).run(fault_rig)
