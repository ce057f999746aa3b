"""Which changes of the configuration have the proof repeated that Envoy's admin is private."""

from __future__ import annotations

import asyncio

from envoy.config.listener.v3 import listener_pb2

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.relay.admin_fingerprint import AdminWatch
from kumadp.relay.messages import LISTENER, encode_response
from kumadp.relay.snapshot import RelaySnapshot, TypeSnapshot
from tests.relay.test_secret_scan import raw


def listeners(**prefixes: str) -> bytes:
    """Return a response with a listener of each name, whose content is the text."""
    resources = [raw(listener_pb2.Listener(name=name, stat_prefix=text)) for name, text in prefixes.items()]
    return encode_response(LISTENER, "v", resources, "1")


class Watched:
    """A watch, and for which listeners it had the proof repeated."""

    def __init__(self) -> None:
        self.memory = RelaySnapshot()
        self.doubted: list[set[str] | None] = []
        self.watch = AdminWatch(
            lambda: self.memory,
            lambda: TcpAdmin("127.0.0.1", 9901),
            lambda names: self.doubted.append(None if names is None else set(names)),
        )

    async def sees(self, accepted: bytes, latest: bytes | None = None) -> list[set[str] | None]:
        self.doubted.clear()
        self.memory = RelaySnapshot((TypeSnapshot(LISTENER, (), accepted, latest),))
        self.watch.on_answered(LISTENER)
        task = self.watch._task
        assert task is not None
        async with asyncio.timeout(30):
            await task
        return list(self.doubted)


async def test_only_a_changed_listener_is_looked_at_again() -> None:
    watched = Watched()
    first, second = listeners(a="1", b="1"), listeners(a="1", b="2", c="1")
    assert await watched.sees(first) == [{"a", "b"}]
    assert await watched.sees(first, second) == [{"b", "c"}]
    assert await watched.sees(second) == []
    assert await watched.sees(second, first) == [{"b"}]


async def test_a_listener_that_was_withdrawn_and_comes_back_is_looked_at_again() -> None:
    watched = Watched()
    first, second = listeners(a="1"), listeners(a="2")
    await watched.sees(first, second)
    assert await watched.sees(second) == []
    assert await watched.sees(first) == [{"a"}]
