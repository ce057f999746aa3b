"""From the FIFO to destinations over real sockets: independent, in order, bounded, to the last line at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from kumadp.accesslog import destination, lookup
from kumadp.accesslog.component import AccessLogs, AccessLogsHandover
from kumadp.accesslog.destination import DestinationLimits
from tests.support.event_loops import on_both_loops
from tests.support.log_sink import Sink
from tests.support.poll import poll_async
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


class Running:
    """A running component, and Envoy's end of its FIFO."""

    def __init__(
        self, path: Path, limits: DestinationLimits, flush: float, handover: AccessLogsHandover | None
    ) -> None:
        self.path = path
        self.reported: list[tuple[str, str]] = []
        self.warnings: dict[str, str] = {}
        self.logs = AccessLogs(path, self._set_warning, flush=flush, limits=limits, handover=handover)
        self.writer = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)

    def _set_warning(self, part: str, warning: str) -> None:
        self.reported.append((part, warning))
        self.warnings[part] = warning

    def write(self, address: str, *messages: str) -> None:
        for message in messages:
            os.write(self.writer, json.dumps({"address": address, "message": message + "\n"}).encode() + b"\n")

    async def write_many(self, address: str, messages: list[str]) -> None:
        """Write like Envoy, which waits if the FIFO is full."""
        for message in messages:
            line = json.dumps({"address": address, "message": message + "\n"}).encode() + b"\n"
            while True:
                try:
                    os.write(self.writer, line)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.001)

    def of(self, address: str) -> dict[str, object]:
        destinations: dict[str, dict[str, object]] = self.logs.status()["destinations"]  # type: ignore[assignment]
        return destinations.get(address, {})


@contextlib.asynccontextmanager
async def running(
    path: Path,
    limits: DestinationLimits | None = None,
    *,
    flush: float = 5.0,
    handover: AccessLogsHandover | None = None,
) -> AsyncIterator[Running]:
    running_logs = Running(path, limits or DestinationLimits(), flush, handover)
    up = asyncio.Event()
    task = asyncio.create_task(running_logs.logs.run(up.set))
    await up.wait()
    try:
        yield running_logs
    finally:
        os.close(running_logs.writer)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(sink: Sink, lines: int, what: str = "lines") -> None:
    async def there() -> bool:
        return len(sink.lines) >= lines

    await poll_async(there, what=f"{lines} {what}")


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as running_logs:
        yield running_logs


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"line {number}" for number in range(start, start + count)]


def as_bytes(lines: list[str]) -> list[bytes]:
    return [line.encode() for line in lines]


@on_both_loops
async def test_lines_arrive_in_order_on_one_connection(tmp_path: Path, sink: Sink) -> None:
    async with running(tmp_path / "al") as logs:
        await logs.write_many(sink.address, numbered(5000))
        await until(sink, 5000)
        assert sink.lines == as_bytes(numbered(5000))
        assert sink.connections == 1
        assert (logs.of(sink.address)["sent"], logs.of(sink.address)["dropped"]) == (5000, 0)


@on_both_loops
async def test_a_writer_that_closes_does_not_end_it(tmp_path: Path, sink: Sink) -> None:
    """kuma-dp stops permanently there."""
    async with running(tmp_path / "al") as logs:
        logs.write(sink.address, "first")
        await until(sink, 1)
        os.close(logs.writer)
        await asyncio.sleep(0)
        logs.writer = os.open(logs.path, os.O_WRONLY | os.O_NONBLOCK)
        logs.write(sink.address, "second")
        await until(sink, 2)


@on_both_loops
async def test_a_line_may_come_in_pieces(tmp_path: Path, sink: Sink) -> None:
    async with running(tmp_path / "al") as logs:
        for piece in (sink.address.encode() + b";he", b"ll", b"o\n" + sink.address.encode(), b";again\n"):
            os.write(logs.writer, piece)
            await asyncio.sleep(0.01)
        await until(sink, 2)
        assert sink.lines == [b"hello", b"again"]


@on_both_loops
async def test_a_malformed_line_is_counted_and_affects_no_other(
    tmp_path: Path, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "al") as logs:
        for _ in range(50):
            os.write(logs.writer, b"nonsense\n\nhost:none;x\n")
        logs.write(sink.address, "good")
        await until(sink, 1)
        assert logs.logs.status()["malformed"] == 100
        assert len(caplog.records) == 1
        assert "nonsense" in caplog.text


@on_both_loops
async def test_a_line_without_end_is_bounded(tmp_path: Path, sink: Sink) -> None:
    async with running(tmp_path / "al") as logs:
        address = sink.address.encode()
        for _ in range(40):
            with contextlib.suppress(BlockingIOError):
                os.write(logs.writer, b"x" * 65536)
            await asyncio.sleep(0.002)
        os.write(logs.writer, b"\n" + address + b";good\n")
        await until(sink, 1)
        assert sink.lines == [b"good"]
        assert logs.logs.status()["malformed"] == 1


@on_both_loops
async def test_an_unreachable_destination_does_not_delay_another(tmp_path: Path, sink: Sink) -> None:
    """One refuses connections, one accepts none: its backlog is full."""
    with socket.socket() as hole, contextlib.ExitStack() as stack:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(hole.getsockname())
        black, dead = f"127.0.0.1:{hole.getsockname()[1]}", f"127.0.0.1:{free_port()}"
        limits = DestinationLimits(lines=100, connect=0.3)
        async with running(tmp_path / "al", limits, flush=0.2) as logs:
            for start in range(0, 2000, 100):
                for address in (dead, sink.address, black):
                    await logs.write_many(address, numbered(100, start))
                await until(sink, start + 100)
            assert sink.lines == as_bytes(numbered(2000))

            async def given_up() -> bool:
                return all(logs.of(address)["failures"] for address in (dead, black))

            await poll_async(given_up, what="failures of both")
            for address in (dead, black):
                assert (logs.of(address)["dropped"], logs.of(address)["waiting"]) == (1900, 100)
            assert "refused" in logs.warnings[f"access log {dead}"]
            assert (
                "no connection within 0.3 s" in logs.warnings[f"access log {black}"]
                or "no answer" in (logs.warnings[f"access log {black}"])
            )
            assert not logs.warnings.get(f"access log {sink.address}")


@on_both_loops
async def test_a_destination_that_is_reachable_again_gets_the_newest_lines(tmp_path: Path) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    async with running(tmp_path / "al", DestinationLimits(lines=10)) as logs:
        logs.write(address, *numbered(25))

        async def failed() -> bool:
            return bool(logs.of(address).get("failures")) and logs.of(address)["dropped"] == 15

        await poll_async(failed, what="a failure")
        with Sink(port) as sink:
            await until(sink, 10)
            assert sink.lines == as_bytes(numbered(10, 15))

            async def well() -> bool:
                return logs.warnings[f"access log {address}"] == ""

            await poll_async(well, what="no warning")


@on_both_loops
async def test_a_destination_that_restarts_loses_no_line(tmp_path: Path, sink: Sink) -> None:
    """The closed connection is noticed before the next line is sent."""
    async with running(tmp_path / "al") as logs:
        logs.write(sink.address, *numbered(5))
        await until(sink, 5)
        sink.stop()

        async def seen() -> bool:
            return logs.of(sink.address)["connected_since"] is None

        await poll_async(seen, what="the end of the connection")
        logs.write(sink.address, *numbered(5, 5))
        sink.start()
        await until(sink, 10)
        assert sink.lines == as_bytes(numbered(10))
        assert (logs.of(sink.address)["dropped"], sink.connections) == (0, 2)


@on_both_loops
async def test_a_destination_that_does_not_read_has_a_bounded_queue(tmp_path: Path, sink: Sink) -> None:
    sink.reads = False
    limits = DestinationLimits(size=1 << 20)
    big = "x" * 8000
    async with running(tmp_path / "al", limits, flush=0.2) as logs:
        with Sink() as other:
            # More than what both ends of a connection hold, some megabytes.
            for start in range(0, 1500, 50):
                await logs.write_many(sink.address, [f"{number} {big}" for number in range(start, start + 50)])
                await logs.write_many(other.address, numbered(50, start))
                await until(other, start + 50)
            assert other.lines == as_bytes(numbered(1500))
        status = logs.of(sink.address)
        assert int(str(status["dropped"])) > 0
        # Lines that are being sent are not part of the queue.
        assert int(str(status["waiting"])) * 8000 <= (1 << 20) + 2 * 65536


@on_both_loops
async def test_remaining_lines_are_sent_at_the_end(tmp_path: Path, sink: Sink) -> None:
    async with running(tmp_path / "al") as logs:
        logs.write(sink.address, *numbered(3000))
    await until(sink, 3000)
    assert sink.lines == as_bytes(numbered(3000))
    assert not (tmp_path / "al").exists()


@on_both_loops
async def test_an_unreachable_destination_does_not_delay_the_end(
    tmp_path: Path, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with running(tmp_path / "al", flush=60.0) as logs:
        logs.write(dead, *numbered(7))
        logs.write(sink.address, *numbered(7))
    await until(sink, 7)
    assert sink.lines == as_bytes(numbered(7))
    assert "7 lines could not be sent any more" in caplog.text


@on_both_loops
async def test_names_are_looked_up_outside_the_event_loop(
    tmp_path: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver that hangs delays only the destination whose name it resolves, and uses one thread."""
    requested: list[str] = []
    hang = asyncio.Event()

    def look_up(host: str, port: int) -> asyncio.Future[list[tuple[int, tuple[str, int]]]]:
        requested.append(host)
        if host == "hangs.example":
            return asyncio.ensure_future(forever())
        return lookup.look_up(host, port)

    async def forever() -> list[tuple[int, tuple[str, int]]]:
        await hang.wait()
        return [(socket.AF_INET, ("127.0.0.1", sink.port))]

    monkeypatch.setattr(destination, "look_up", look_up)
    async with running(tmp_path / "al", DestinationLimits(connect=0.1)) as logs:
        logs.write("hangs.example:514", "late")
        logs.write(f"localhost:{sink.port}", "first")
        await until(sink, 1)

        async def tried() -> bool:
            return int(str(logs.of("hangs.example:514")["failures"])) >= 2

        await poll_async(tried, what="two attempts")
        assert requested.count("hangs.example") == 1
        hang.set()
        await until(sink, 2)


@on_both_loops
async def test_an_unknown_host_name_is_a_warning(tmp_path: Path) -> None:
    async with running(tmp_path / "al", flush=0.1) as logs:
        logs.write("no-such-host.invalid:514", "x")

        async def reported() -> bool:
            return bool(logs.warnings.get("access log no-such-host.invalid:514"))

        await poll_async(reported, what="a warning")


@on_both_loops
async def test_a_host_without_a_further_thread_is_a_failed_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        await lookup.look_up("localhost", 514)


@on_both_loops
async def test_destinations_are_bounded_and_removed_when_idle(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(Sink()) for _ in range(3)]
        dead = f"127.0.0.1:{free_port()}"
        async with running(tmp_path / "al", DestinationLimits(destinations=2, idle=0.3), flush=0.1) as logs:
            for sink in sinks:
                logs.write(sink.address, "line")
                await until(sink, 1)
            # An idle one was removed for the third.
            assert len(logs.logs.status()["destinations"]) == 2  # type: ignore[arg-type]

            async def none() -> bool:
                return not logs.logs.status()["destinations"]

            await poll_async(none, what="all removed")
            assert logs.logs.status()["sent"] == 3
            logs.write(dead, "a")
            logs.write(dead.replace("127.0.0.1", "127.0.0.2"), "b")
            logs.write(sinks[0].address, "no room")

            async def dropped() -> bool:
                return logs.logs.status()["dropped"] == 1

            await poll_async(dropped, what="a line dropped")


@on_both_loops
async def test_the_next_program_continues_within_a_line(tmp_path: Path, sink: Sink) -> None:
    """Connection, queue, counters and the beginning of a line are handed over: no line is lost or sent twice."""
    dead = f"127.0.0.1:{free_port()}"
    path = tmp_path / "al"
    first = AccessLogs(path, lambda _part, _set_warning: None, flush=0.0)
    up = asyncio.Event()
    task = asyncio.create_task(first.run(up.set))
    await up.wait()
    writer = os.open(path, os.O_WRONLY)
    node = path.stat().st_ino
    for number in range(10):
        os.write(writer, f"{sink.address};line {number}\n{dead};line {number}\n".encode())
    os.write(writer, f"{sink.address};li".encode())
    await until(sink, 10)

    async def read() -> bool:
        return first.hand_over().rest == f"{sink.address};li".encode()

    await poll_async(read, what="the beginning of a line")
    # Like execve(2): descriptors of the same files, and nothing else of the previous program.
    handover = msgspec.msgpack.decode(msgspec.msgpack.encode(_duplicated(first.hand_over())), type=AccessLogsHandover)
    async with running(path, flush=0.1, handover=handover) as logs:
        first._reader.close()
        os.write(writer, b"ne 10\n")
        await until(sink, 11)
        assert sink.lines == as_bytes(numbered(11))
        assert sink.connections == 1
        assert logs.of(dead)["waiting"] == 10
        assert logs.logs.status()["lines"] == 21
        assert path.stat().st_ino == node
        os.close(writer)
    first._reader.close = first._reader.drain = lambda: None  # type: ignore[method-assign]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _duplicated(handover: AccessLogsHandover) -> AccessLogsHandover:
    def double(descriptor: int) -> int:
        return os.dup(descriptor) if descriptor >= 0 else -1

    replace = msgspec.structs.replace
    destinations = tuple(
        replace(destination, descriptor=double(destination.descriptor)) for destination in handover.destinations
    )
    return replace(handover, descriptor=double(handover.descriptor), destinations=destinations)


@on_both_loops
async def test_a_full_fifo_is_logged_and_loses_no_line(
    tmp_path: Path, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """While the event loop is blocked, the FIFO fills and Envoy's thread waits."""
    line = f"{sink.address};{'x' * 90}\n".encode()
    async with running(tmp_path / "al", DestinationLimits(lines=1_000_000, size=1 << 30, total=1 << 30)) as logs:
        written = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                written += os.write(logs.writer, line * 30) // len(line)
        await until(sink, written)
        assert logs.logs.status()["behind"] == 1
        assert logs.logs.status()["dropped"] == 0
        assert "come faster than they can be read" in caplog.text
