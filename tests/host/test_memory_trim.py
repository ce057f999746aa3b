"""Memory that is free within the process goes back to the kernel; a libc without malloc_trim changes nothing."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.host import memory_trim

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    memory_trim._trim.cache_clear()
    yield
    memory_trim._trim.cache_clear()


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this libc has no malloc_trim")
def test_freed_memory_is_returned() -> None:
    # Above Python's own arenas and below glibc's threshold for mapped blocks; the last one keeps the heap's end.
    blocks = [b"x" * (100 << 10) for _ in range(500)]
    last = b"y" * (100 << 10)
    full = resident()
    del blocks
    memory_trim.trim_memory()
    assert full - resident() > 30 << 20
    assert last[:1] == b"y"


def test_a_libc_without_malloc_trim_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    memory_trim.trim_memory()
    assert memory_trim._trim() is None
