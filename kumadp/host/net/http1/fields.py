"""Header fields of a message: in their order, found by name in any case. Values are bytes as Latin-1 text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence


MAX_TOKENS = 64
_MOST_DERIVED = 4


class FieldList:
    """Header fields as they were received; a name may occur several times. They are not changed."""

    __slots__ = ("_derived", "_pairs", "names", "values")

    def __init__(self, pairs: Sequence[tuple[str, str]] = ()) -> None:
        self._pairs = pairs
        self._derived: dict[Hashable, bytes] = {}
        self.names = [name.lower() for name, _ in pairs]
        """The names in lower case, in the same order."""
        self.values: dict[str, list[str]] = {}
        """All values by name in lower case."""
        values = self.values
        for name, (_, value) in zip(self.names, pairs, strict=True):
            if name in values:
                values[name].append(value)
            else:
                values[name] = [value]

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of a field."""
        values = self.values.get(name.lower())
        return values[0] if values else default

    def items(self) -> Sequence[tuple[str, str]]:
        """Return names, as they were written, and values."""
        return self._pairs

    def derive(self, key: Hashable, make: Callable[[FieldList], bytes]) -> bytes:
        """Return what is made of these fields, for a ``key``; some is remembered as long as the fields are."""
        made = self._derived.get(key)
        if made is None:
            made = make(self)
            if len(self._derived) < _MOST_DERIVED:
                self._derived[key] = made
        return made

    def tokens(self, name: str) -> set[str]:
        """Return the elements of a list field, such as Connection, in lower case (RFC 9110, 5.6.1).

        At most `MAX_TOKENS` of each value.
        """
        values = self.values.get(name)
        if values is None:
            return set()
        return {token.strip(" \t").lower() for value in values for token in value.split(",", MAX_TOKENS)[:MAX_TOKENS]}
