"""Regular expressions from outside: RE2, as Go and Envoy have it, whose time is linear in the text.

Python's own engine takes exponential time for some expressions, and its syntax is another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Of an expression, in bytes, and of what it is compiled to, all of them together.
LONGEST = 16 << 10
_MEMORY = 8 << 20


class BadExpression(ValueError):
    """A text that is no regular expression of RE2; the message says why."""


def compiled(expression: bytes) -> Callable[[bytes], object]:
    """A search for ``expression`` in bytes, which gives something true where it matches; raises BadExpression."""
    import re2

    if len(expression) > LONGEST:
        raise BadExpression(f"it is longer than {LONGEST >> 10} KiB")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    # A search needs no groups, and without them RE2 has its fastest engine.
    options.never_capture = True
    try:
        return re2.compile(expression, options).search  # type: ignore[no-any-return]
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise BadExpression(text or "it cannot be read") from None


def problem_of(expression: str) -> str:
    """Why ``expression`` is no regular expression of RE2, empty if it is one."""
    try:
        if expression:
            compiled(expression.encode(errors="surrogateescape"))
    except BadExpression as error:
        return str(error)
    return ""
