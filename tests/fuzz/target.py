"""A target: one parser of bytes from outside, real inputs of it, and what each of its inputs may cost."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import SearchStrategy

ROOT = Path(__file__).resolve().parent.parent.parent
CAPTURES = ROOT / "tests" / "data" / "captures"


@dataclass(frozen=True)
class Target:
    """A parser: ``parse`` reads an input, and may raise ``refusals`` only, which are its documented errors.

    ``seeds`` are real inputs, ``words`` texts of the format that mutations insert, ``grammar`` generates well-formed
    and nearly well-formed inputs, ``structure`` changes an input so that it stays well-formed. An input of n bytes may
    cost ``lines_base + n * lines`` lines of Python and ``memory_base + n * memory`` bytes at once. ``largest`` is the
    size of an input in bytes. Of a ``slow`` one `make test` runs a fifth.
    """

    name: str
    parse: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    refusals: tuple[type[Exception], ...] = ()
    words: tuple[bytes, ...] = ()
    grammar: Callable[[], SearchStrategy[bytes]] | None = None
    structure: Callable[[random.Random, Sequence[bytes]], bytes | None] | None = None
    lines: float = 20
    lines_base: int = 2000
    memory: float = 60
    memory_base: int = 40_000
    largest: int = 4096
    slow: bool = False

    def lines_of(self, size: int) -> float:
        """Return how many lines of Python an input of ``size`` bytes may run."""
        return self.lines_base + size * self.lines

    def memory_of(self, size: int) -> float:
        """Return how many bytes an input of ``size`` bytes may allocate."""
        return self.memory_base + size * self.memory


class Scratch:
    """A file, 0600, that holds one input, for parsers that read files."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def path(self) -> Path:
        """The file; its folder is removed when the process ends."""
        if self._folder is None:
            # In memory, if possible: millions are written.
            shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            self._folder = tempfile.TemporaryDirectory(prefix="kumadp-fuzz-", dir=shm)
        return Path(self._folder.name) / self._name

    def write(self, data: bytes) -> Path:
        """Replace the content; returns the path."""
        path = self.path
        path.write_bytes(data)
        path.chmod(0o600)
        return path


def captured(pattern: str) -> list[bytes]:
    """Return the captures whose path matches, in their order."""
    return [path.read_bytes() for path in sorted(CAPTURES.glob(pattern))]
