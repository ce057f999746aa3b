"""Queries to Envoy's DNS filter and the name servers of resolv.conf: which server, in which order, how long."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.dns import message
from kumadp.dns.message import A_IN, NOERROR, NXDOMAIN, SERVFAIL, Query, code_of, encode_answer, is_truncated
from kumadp.dns.resolvconf import ResolvConf, Server, is_own
from kumadp.dns.resolver.answer import relayed_answer
from kumadp.dns.resolver.counters import Counters
from kumadp.dns.resolver.exchange import SentQueries, answer_within, query_tcp, query_udp
from kumadp.dns.resolver.limits import ResolverLimits
from kumadp.host.descriptors import share

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kumadp.dns.resolver.answer import Forward, Transport

# If a server is silent for this time, the next one is queried in parallel, even if resolv.conf has a longer timeout:
# the C library's clients give up after 5 s (seconds).
NEXT_SERVER_AFTER = 1.0
# A server that was silent comes last for this time, and is then tried by one query first (seconds).
DEAD_FOR = 10.0
# One query may be sent to several servers at a time.
MOST_SOCKETS = 2000
# Envoy is on this host and answers from memory. For names that other servers may have it has less time than for those
# of the mesh; with the wait for names that are due, those take less than the 5 s of clients (seconds).
FILTER_TIMEOUT = 0.3
MESH_FILTER_TIMEOUT = 1.5
FILTER_DEAD_FOR = 1.0
_TRY_NEXT = {message.FORMERR, SERVFAIL, message.NOTIMP, message.REFUSED}


class Upstreams(Struct):
    """The servers that queries are forwarded to.

    ``own``: where kumadp listens, never queried; ``local``: this host's addresses, our own if kumadp listens on all.
    ``envoy``: Envoy's DNS filter, queried first if the table requires it.
    """

    conf: ResolvConf = field(default_factory=ResolvConf)
    own: Sequence[Server] = ()
    local: Collection[str] = ()
    envoy: Server | None = None
    counters: Counters = field(default_factory=Counters)
    limits: ResolverLimits = field(default_factory=ResolverLimits)
    sent_queries: SentQueries = field(default_factory=SentQueries)
    _pending: int = 0
    _sockets: int = 0
    _turn: int = 0
    _dead: dict[Server, float] = field(default_factory=dict)

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers of resolv.conf without kumadp itself."""
        return tuple(server for server in self.conf.servers if not is_own(server, self.own, self.local))

    async def resolve(self, forward: Forward, data: bytes, transport: Transport) -> bytes:
        """Return the answer for the client, SERVFAIL if there is none; ``data`` is the client's query."""
        if self._pending >= self.limits.forwarded:
            self.counters.refused += 1
            return encode_answer(forward.query, SERVFAIL)
        self._pending += 1
        self.counters.forwarded += 1
        since = time.monotonic()
        try:
            reply = await self._resolve(forward, data, transport)
        finally:
            self._pending -= 1
            self.counters.note_forwarded(time.monotonic() - since)
        if reply is None:
            self.counters.failed += 1
            return encode_answer(forward.query, SERVFAIL)
        return relayed_answer(forward.query, reply, transport)

    async def _resolve(self, forward: Forward, data: bytes, transport: Transport) -> bytes | None:
        query = forward.query
        if self.envoy is not None:
            answer = await self._resolve_by_envoy(self.envoy, query, data, in_mesh=forward.in_mesh)
            if answer is not None or forward.in_mesh:
                return answer
        elif forward.in_mesh:
            return encode_answer(query, NXDOMAIN, authoritative=True)
        return await self._query_servers(data, query.question, transport)

    async def _resolve_by_envoy(self, envoy: Server, query: Query, data: bytes, *, in_mesh: bool) -> bytes | None:
        """Return the filter's answer, or None if other servers must be queried. The filter knows lower case only."""
        if not in_mesh and self._dead.get(envoy, 0.0) > time.monotonic():
            return None
        question = message.lower_question(query.question)
        seconds = MESH_FILTER_TIMEOUT if in_mesh else FILTER_TIMEOUT
        answer = await self._query_envoy(envoy, data, question, seconds)
        if not in_mesh:
            return answer if answer is not None and code_of(answer) == NOERROR else None
        if answer is None or code_of(answer) == NOERROR or query.type == message.A:
            return answer
        # The filter answers NXDOMAIN for other types of a name that it knows.
        a_answer = await self._query_envoy(envoy, data, question[:-4] + A_IN, seconds)
        if a_answer is None:
            return None
        return encode_answer(query, NOERROR if code_of(a_answer) == NOERROR else NXDOMAIN, authoritative=True)

    async def _query_envoy(self, envoy: Server, data: bytes, question: bytes, seconds: float) -> bytes | None:
        query = message.with_question(data, question)
        try:
            with self._one_socket():
                answer = await answer_within(seconds, query_udp(envoy, query, question, self.sent_queries))
        except TimeoutError:
            self._dead[envoy] = time.monotonic() + FILTER_DEAD_FOR
            return None
        except OSError:
            return None
        self._dead.pop(envoy, None)
        return answer

    async def _query_servers(self, data: bytes, question: bytes, transport: Transport) -> bytes | None:
        """Return the first usable answer, else the last failure. An earlier server may still answer after its turn."""
        servers = self._in_order()
        if not servers:
            return None
        step = min(self.conf.timeout, NEXT_SERVER_AFTER)
        rounds = len(servers) * self.conf.attempts
        deadline = time.monotonic() + min(max(self.conf.timeout, step * rounds), self.limits.forward_within)
        pending: dict[asyncio.Task[bytes], Server] = {}
        failure: bytes | None = None
        remaining_servers = servers * self.conf.attempts
        try:
            while True:
                if remaining_servers:
                    server = remaining_servers.pop(0)
                    pending[asyncio.create_task(self._query(server, data, question, transport))] = server
                elif not pending:
                    return failure
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return failure
                timeout = min(step, remaining) if remaining_servers else remaining
                done, _ = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    for silent in set(pending.values()):
                        self._dead[silent] = time.monotonic() + DEAD_FOR
                for task in done:
                    server = pending.pop(task)
                    answer = None if task.exception() is not None else task.result()
                    if answer is not None and code_of(answer) not in _TRY_NEXT:
                        self._dead.pop(server, None)
                        return answer
                    failure = answer or failure
                    if answer is not None:
                        # Only silent servers get a second query; in a forwarding loop queries would double each time.
                        remaining_servers = [other for other in remaining_servers if other != server]
        finally:
            for task in pending:
                task.cancel()

    def _in_order(self) -> list[Server]:
        """Return each server once, those that were silent last."""
        servers = list(self.servers)
        if self.conf.rotate and servers:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        now = time.monotonic()
        servers.sort(key=lambda server: self._dead.get(server, 0.0) > now)
        if servers and servers[0] in self._dead:
            # Its time is over, or all are silent: this query tries it, and concurrent ones do not wait for it too.
            self._dead[servers[0]] = now + DEAD_FOR
        return servers

    @contextlib.contextmanager
    def _one_socket(self) -> Iterator[None]:
        """Count one more socket until the end of the block; raises OSError if this process has too many."""
        if self._sockets >= share(MOST_SOCKETS, 3):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._sockets += 1
        try:
            yield
        finally:
            self._sockets -= 1

    async def _query(self, server: Server, data: bytes, question: bytes, transport: Transport) -> bytes:
        with self._one_socket():
            if self.conf.use_tcp:
                return await query_tcp(server, data, question, self.sent_queries)
            answer = await query_udp(server, data, question, self.sent_queries)
        if transport == "tcp" and is_truncated(answer):
            # The truncated answer is better than none.
            with contextlib.suppress(OSError, EOFError), self._one_socket():
                return await query_tcp(server, data, question, self.sent_queries)
        return answer
