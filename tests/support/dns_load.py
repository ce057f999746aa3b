"""Queries at a steady rate, as a resolver sends them: ``python -m tests.support.dns_load PORT NAME RATE SECONDS WAIT``.

Each query is sent from one of several connected sockets. One that is refused or unanswered after WAIT seconds is sent
once more, at once, from another; one that is then refused or unanswered is lost. Prints the counts as JSON.
"""

from __future__ import annotations

import collections
import contextlib
import json
import selectors
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kumadp.dns.message import encode_query, with_number

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCKETS = 64
MOST = 60_000
# A load that was not scheduled for a while does not catch up: bursts, and bursts of retries, overflow the receive
# buffers of name servers (seconds, queries).
LAG = 0.02
RETRIES_AT_ONCE = 40


@dataclass
class Counts:
    """What became of the queries."""

    sent: int = 0
    answered: int = 0
    retried: int = 0
    lost: int = 0
    wrong: int = 0


@dataclass
class _Query:
    number: int
    at: float
    client: int
    again: bool = False


class _Load:
    def __init__(self, port: int, name: str, wait: float) -> None:
        self._wait = wait
        self.counts = Counts()
        self._query = encode_query(name)
        self._selector = selectors.DefaultSelector()
        self._clients = []
        for index in range(SOCKETS):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.setblocking(False)
            client.connect(("127.0.0.1", port))
            self._selector.register(client, selectors.EVENT_READ, index)
            self._clients.append(client)
        self._open: dict[int, _Query] = {}
        self._order: collections.deque[tuple[float, int, bool]] = collections.deque()

    def run(self, rate: int, seconds: float) -> Counts:
        total = min(int(rate * seconds), MOST)
        begin = time.monotonic()
        while self.counts.sent < total or self._open:
            now = time.monotonic()
            begin = max(begin, now - LAG - self.counts.sent / rate)
            while self.counts.sent < total and begin + self.counts.sent / rate <= now:
                self._send_query(_Query(self.counts.sent, now, self.counts.sent % SOCKETS))
                self.counts.sent += 1
            for key, _ in self._selector.select(0.001):
                self._receive(key.data)
            self._expire(time.monotonic())
        return self.counts

    def _send_query(self, query: _Query) -> None:
        self._open[query.number] = query
        self._order.append((query.at + self._wait, query.number, query.again))
        try:
            self._clients[query.client].send(with_number(self._query, query.number))
        except OSError:
            self._failed(query)

    def _receive(self, index: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    answer = self._clients[index].recv(4096)
                except BlockingIOError:
                    return
                except OSError:
                    # Refused, but not which query: all that wait on this socket are sent again.
                    for query in [pending for pending in self._open.values() if pending.client == index]:
                        self._failed(query)
                    return
                number, flags, _, answers = struct.unpack("!HHHH", answer[:8])
                if self._open.pop(number, None) is not None:
                    self.counts.answered += 1
                    self.counts.wrong += flags & 0xF != 0 or answers != 1

    def _expire(self, now: float) -> None:
        retries = 0
        while retries < RETRIES_AT_ONCE and self._order and self._order[0][0] <= now:
            _, number, again = self._order.popleft()
            query = self._open.get(number)
            if query is not None and query.again is again:
                retries += 1
                self._failed(query)

    def _failed(self, query: _Query) -> None:
        self._open.pop(query.number, None)
        if query.again:
            self.counts.lost += 1
            return
        self.counts.retried += 1
        self._send_query(_Query(query.number, time.monotonic(), (query.client + SOCKETS // 2) % SOCKETS, again=True))


@contextlib.contextmanager
def dns_load(port: int, name: str, *, rate: int, seconds: float, wait: float = 1.0) -> Iterator[DnsLoad]:
    """Run the load in a separate process; `DnsLoad.counts` waits for its end."""
    command = [sys.executable, "-m", "tests.support.dns_load", str(port), name]
    command += [str(rate), str(seconds), str(wait)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield DnsLoad(process, seconds)
        finally:
            process.kill()


class DnsLoad:
    """A load that runs."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def counts(self) -> Counts:
        """What became of all queries, once it has ended."""
        output, _ = self._process.communicate(timeout=self._seconds + 30)
        return Counts(**json.loads(output))


if __name__ == "__main__":
    at, what, each_second, duration, wait = sys.argv[1:6]
    sys.stdout.write(json.dumps(asdict(_Load(int(at), what, float(wait)).run(int(each_second), float(duration)))))
