"""Runs kumadp with the toy part: ``run.py python -m kumadp ...``."""

from __future__ import annotations

import runpy
import sys
from typing import TYPE_CHECKING

from kumadp.daemon import start
from tests.support.toy.part import ToyPart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.core.context import Context
    from kumadp.core.part import Part

make_parts = start.make_parts


def with_toy(
    context: Context, launch: start.Launch, actions: Mapping[str, start.Action], parts: start.Parts
) -> list[Part]:
    """The parts of kumadp, and one line more."""
    return [*make_parts(context, launch, actions, parts), ToyPart(context)]


if __name__ == "__main__":
    start.make_parts = with_toy
    sys.argv = sys.argv[3:]
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
