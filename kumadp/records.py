"""What records share. They are msgspec structs: a dataclass compiles its methods at import, in 30 times the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def hiding(*names: str) -> Callable[[Any], str]:
    """Return a ``__repr__`` without these fields: secrets, and what is large."""

    def __repr__(record: Any) -> str:  # noqa: N807 - the name in tracebacks
        kind = type(record)
        shown = (f"{name}={getattr(record, name)!r}" for name in kind.__struct_fields__ if name not in names)
        return f"{kind.__qualname__}({', '.join(shown)})"

    return __repr__
