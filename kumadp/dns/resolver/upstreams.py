"""The name servers of resolv.conf, and Envoy's DNS filter before them: who is asked, in which order, how long."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kumadp.dns import message
from kumadp.dns.message import NOERROR, NXDOMAIN, SERVFAIL, Query, code_of, is_cut, write
from kumadp.dns.resolvconf import ResolvConf, Server, is_own
from kumadp.dns.resolver.answer import fitting
from kumadp.dns.resolver.counters import Counters
from kumadp.dns.resolver.exchange import SentQueries, query_tcp, query_udp
from kumadp.host.descriptors import share

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kumadp.dns.resolver.answer import Forward, Transport

# A server that is silent for so long has the next one asked beside it, whatever resolv.conf says: the C library's
# clients give up after 5 s (seconds).
PATIENCE = 1.0
LONGEST = 10.0
# A server that was silent comes last for this time, and is then tried by one query first.
DEAD_FOR = 10.0
MOST_AT_ONCE = 1000
# One question may be sent to several servers at a time.
MOST_SOCKETS = 2000
# Envoy is on this host and answers from memory.
FILTER_PATIENCE = 0.3
FILTER_DEAD_FOR = 1.0
_TRY_NEXT = {message.FORMERR, SERVFAIL, message.NOTIMP, message.REFUSED}


@dataclass(slots=True)
class Upstreams:
    """``own``: where we listen ourselves, never asked; ``local``: this host's addresses, ours where we listen on all.

    ``envoy``: Envoy's DNS filter, asked first where the table says so.
    """

    conf: ResolvConf = field(default_factory=ResolvConf)
    own: Sequence[Server] = ()
    local: Collection[str] = ()
    envoy: Server | None = None
    counters: Counters = field(default_factory=Counters)
    asked: SentQueries = field(default_factory=SentQueries)
    _under_way: int = 0
    _sockets: int = 0
    _turn: int = 0
    _dead: dict[Server, float] = field(default_factory=dict)

    @property
    def servers(self) -> tuple[Server, ...]:
        """Those that are no loop to ourselves."""
        return tuple(server for server in self.conf.servers if not is_own(server, self.own, self.local))

    async def resolve(self, asked: Forward, data: bytes, transport: Transport) -> bytes:
        """The answer for the client, whatever happens."""
        if self._under_way >= MOST_AT_ONCE:
            self.counters.refused += 1
            return write(asked.query, SERVFAIL)
        self._under_way += 1
        self.counters.asked += 1
        since = time.monotonic()
        try:
            reply = await self._resolve(asked, data, transport)
        finally:
            self._under_way -= 1
            self.counters.note_asked(time.monotonic() - since)
        if reply is None:
            self.counters.failed += 1
            return write(asked.query, SERVFAIL)
        return fitting(asked.query, reply, transport)

    async def _resolve(self, asked: Forward, data: bytes, transport: Transport) -> bytes | None:
        query = asked.query
        if self.envoy is not None:
            found = await self._of_envoy(self.envoy, query, data, ours=asked.ours)
            if found is not None or asked.ours:
                return found
        elif asked.ours:
            return write(query, NXDOMAIN, authoritative=True)
        return await self._of_servers(data, query.question, transport)

    async def _of_envoy(self, envoy: Server, query: Query, data: bytes, *, ours: bool) -> bytes | None:
        """The filter's answer; None where others are to be asked. It knows names in lower case alone."""
        if not ours and self._dead.get(envoy, 0.0) > time.monotonic():
            return None
        question = query.question[:-4].lower() + query.question[-4:]
        found = await self._ask_envoy(envoy, data, question)
        if not ours:
            return found if found is not None and code_of(found) == NOERROR else None
        if found is None or code_of(found) == NOERROR or query.type == message.A:
            return found
        # It says NXDOMAIN to other types of a name that it knows.
        known = await self._ask_envoy(envoy, data, question[:-4] + b"\x00\x01\x00\x01")
        if known is None:
            return None
        return write(query, NOERROR if code_of(known) == NOERROR else NXDOMAIN, authoritative=True)

    async def _ask_envoy(self, envoy: Server, data: bytes, question: bytes) -> bytes | None:
        end = message.HEADER.size + len(question)
        query = data[: message.HEADER.size] + question + data[end:]
        try:
            async with asyncio.timeout(FILTER_PATIENCE):
                with self._one_socket():
                    answer = await query_udp(envoy, query, question, self.asked)
        except TimeoutError:
            self._dead[envoy] = time.monotonic() + FILTER_DEAD_FOR
            return None
        except OSError:
            return None
        self._dead.pop(envoy, None)
        return answer

    async def _of_servers(self, data: bytes, question: bytes, transport: Transport) -> bytes | None:
        """The first answer that is one. A server that is silent goes on being listened to while others are asked."""
        servers = self._in_order()
        if not servers:
            return None
        step = min(self.conf.timeout, PATIENCE)
        rounds = len(servers) * self.conf.attempts
        deadline = time.monotonic() + min(max(self.conf.timeout, step * rounds), LONGEST)
        waiting: dict[asyncio.Task[bytes], Server] = {}
        failure: bytes | None = None
        left = servers * self.conf.attempts
        try:
            while True:
                if left:
                    server = left.pop(0)
                    waiting[asyncio.create_task(self._ask(server, data, question, transport))] = server
                elif not waiting:
                    return failure
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return failure
                wait = min(step, remaining) if left else remaining
                done, _ = await asyncio.wait(waiting, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    for silent in set(waiting.values()):
                        self._dead[silent] = time.monotonic() + DEAD_FOR
                for task in done:
                    server = waiting.pop(task)
                    answer = None if task.exception() is not None else task.result()
                    if answer is not None and code_of(answer) not in _TRY_NEXT:
                        self._dead.pop(server, None)
                        return answer
                    failure = answer or failure
                    if answer is not None:
                        # Once more is for those that are silent; in a loop each would make two of it.
                        left = [one for one in left if one != server]
        finally:
            for task in waiting:
                task.cancel()

    def _in_order(self) -> list[Server]:
        """Each server once, those that were silent last."""
        servers = list(self.servers)
        if self.conf.rotate and servers:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        now = time.monotonic()
        servers.sort(key=lambda server: self._dead.get(server, 0.0) > now)
        if servers and servers[0] in self._dead:
            # Its time is over, or all are silent: this query tries it, those beside it do not wait for it too.
            self._dead[servers[0]] = now + DEAD_FOR
        return servers

    @contextlib.contextmanager
    def _one_socket(self) -> Iterator[None]:
        """In here a socket more may be open; raises OSError where that would be too many for this process."""
        if self._sockets >= share(MOST_SOCKETS, 3):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._sockets += 1
        try:
            yield
        finally:
            self._sockets -= 1

    async def _ask(self, server: Server, data: bytes, question: bytes, transport: Transport) -> bytes:
        with self._one_socket():
            if self.conf.use_tcp:
                return await query_tcp(server, data, question, self.asked)
            answer = await query_udp(server, data, question, self.asked)
        if transport == "tcp" and is_cut(answer):
            # Cut as it is, it says more than nothing.
            with contextlib.suppress(OSError, EOFError), self._one_socket():
                return await query_tcp(server, data, question, self.asked)
        return answer
