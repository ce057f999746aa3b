"""Envoy's health stream (HDS), passed through, with the reports of an Envoy held back when they would harm.

The control plane acts on reports alone: silence is harmless, but two Envoys that contradict each other make the inbound
alternate between ready and not ready (seen with Kuma 2.13.5).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from kumadp.grpc.call import UNAVAILABLE, Call, StreamEnded
from kumadp.relay.health_admin import admin_socket, with_admin_socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HDS = "/envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck"
# Before a health stream that broke on an intact connection is opened again, in seconds.
REOPEN_AFTER = 1.0
# Largest message of the control plane in bytes: a check for each inbound. A larger one ends the stream.
LARGEST_SPECIFIER = 16 << 20


class _Newest:
    """A slot for the newest report.

    Envoy 1.40 reports by a timer that goes on when the control plane changes what to check. What is new counts as
    unhealthy until it was checked, which would take the data plane out of the mesh until the next report, after 5 s:
    the first report after a change is dropped. If the stream broke with the control plane, the timer would begin again.
    """

    def __init__(self) -> None:
        self._report: bytes | None = None
        self._filled = asyncio.Event()
        self._specifier = b""
        self._outdated = False

    def specify(self, specifier: bytes) -> None:
        """Envoy is about to get this message of the control plane: what to check."""
        self._outdated = self._outdated or self._specifier not in (b"", specifier)
        self._specifier = specifier

    def put(self, report: bytes) -> None:
        if self._outdated:
            self._outdated = False
            return
        self._report = report
        self._filled.set()

    async def take(self) -> bytes:
        await self._filled.wait()
        self._filled.clear()
        report, self._report = self._report, None
        return report or b""


class HealthRelay:
    """The health streams of all running Envoys. ``hold`` holds every report back while one Envoy replaces another."""

    def __init__(
        self,
        open_call: Callable[[str], Awaitable[Call]],
        epoch_of: Callable[[int], int],
        largest: int = LARGEST_SPECIFIER,
    ) -> None:
        self._largest = largest
        self._open_call = open_call
        self._epoch_of = epoch_of
        self._epochs: list[int] = []
        self.hold = False

    async def serve(self, call: Call, pid: int) -> None:
        """Serve one stream of the process ``pid`` until it, or the control plane, ends it.

        While the control plane is unreachable the stream stays open: the next connection begins with Envoy's first
        message.
        """
        epoch = self._epoch_of(pid)
        first = await call.receive()
        reports = _Newest()
        self._epochs.append(epoch)
        passing = asyncio.create_task(self._pass_down(call, first, reports), name="relay health")
        reading = asyncio.create_task(self._read(call, epoch, reports), name="relay health reader")
        try:
            await asyncio.wait({passing, reading}, return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                ended = passing.result()
                await call.finish(UNAVAILABLE if not ended.status else ended.status, ended.text)
        finally:
            self._epochs.remove(epoch)
            for task in (passing, reading):
                task.cancel()
            await asyncio.wait({passing, reading})

    async def _read(self, call: Call, epoch: int, reports: _Newest) -> None:
        first_after_hold = self.hold
        with contextlib.suppress(StreamEnded):
            while True:
                report = await call.receive()
                if self.hold:
                    continue
                if first_after_hold:
                    # It may report a check from before this Envoy was LIVE, which would take it out of the mesh.
                    first_after_hold = False
                elif epoch == max(self._epochs):
                    reports.put(report)

    async def _pass_down(self, call: Call, first: bytes, reports: _Newest) -> StreamEnded:
        """Pass messages of the control plane to Envoy; return how the control plane ended the stream."""
        admin = admin_socket(first)
        while True:
            up = await self._open_call(HDS)
            writer = asyncio.create_task(_write(up, first, reports), name="relay health writer")
            try:
                while True:
                    specifier = await up.receive(largest=self._largest)
                    if admin:
                        specifier = with_admin_socket(specifier, admin)
                    reports.specify(specifier)
                    await call.send(specifier)
            except StreamEnded as ended:
                if ended.status is not None:
                    return ended
            finally:
                writer.cancel()
                up.close()
            await asyncio.sleep(REOPEN_AFTER)


async def _write(up: Call, first: bytes, reports: _Newest) -> None:
    with contextlib.suppress(StreamEnded):
        await up.send(first)
        while True:
            await up.send(await reports.take())
