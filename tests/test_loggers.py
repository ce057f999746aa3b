"""No test changes the log levels of another one."""

from __future__ import annotations

import logging

from tests.support.loggers import preserved_loggers


def test_levels_are_restored() -> None:
    logger = logging.getLogger("kumadp.test")
    previous = logger.level, logger.propagate, logging.raiseExceptions
    with preserved_loggers():
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
        logging.getLogger("kumadp.test.new").setLevel(logging.ERROR)
        logging.raiseExceptions = not logging.raiseExceptions
    assert (logger.level, logger.propagate, logging.raiseExceptions) == previous
    assert logging.getLogger("kumadp.test.new").level == logging.NOTSET
