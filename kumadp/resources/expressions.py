"""Regular expressions from outside, evaluated by RE2 as in Go and Envoy, in time linear in the text.

Python's own engine takes exponential time for some expressions, and its syntax differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Maximum size of an expression, and of the memory of its compiled form (bytes).
MAX_SIZE = 16 << 10
_MAX_MEMORY = 8 << 20


class BadExpression(ValueError):
    """A text that is not a regular expression of RE2; the message is the reason."""


def compiled(expression: bytes) -> Callable[[bytes], object]:
    """Compile ``expression`` to a search in bytes, whose result is true if it matches; raises BadExpression."""
    import re2

    if len(expression) > MAX_SIZE:
        raise BadExpression(f"it is longer than {MAX_SIZE >> 10} KiB")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    # A search needs no groups, and without them RE2 has its fastest engine.
    options.never_capture = True
    try:
        return re2.compile(expression, options).search  # type: ignore[no-any-return]
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise BadExpression(text or "it is invalid") from None


def problem_of(expression: str) -> str:
    """Return why ``expression`` is not a regular expression of RE2; empty if it is one."""
    try:
        if expression:
            compiled(expression.encode(errors="surrogateescape"))
    except BadExpression as error:
        return str(error)
    return ""
