"""Levels of the loggers, which are global: what one test changes must not change what another one logs."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def preserved_loggers() -> Iterator[None]:
    """Restore level and propagation of all loggers of kumadp, also of those that are created within the context."""
    before = {logger.name: (logger.level, logger.propagate) for logger in _loggers()}
    raise_exceptions = logging.raiseExceptions
    yield
    logging.raiseExceptions = raise_exceptions
    for logger in _loggers():
        level, propagate = before.get(logger.name, (logging.NOTSET, True))
        if (logger.level, logger.propagate) != (level, propagate):
            logger.setLevel(level)
            logger.propagate = propagate


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.items()
    return [logger for name, logger in known if name.startswith("kumadp") and isinstance(logger, logging.Logger)]
