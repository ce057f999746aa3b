"""Parser of a bootstrap's text."""

from __future__ import annotations

from typing import Any

import yaml

from kumadp import yamltext
from kumadp.bootstrap.spelling import double_spellings
from kumadp.errors import BootstrapError, Problem

BOUNDS = yamltext.Bounds(size=16 << 20, nodes=1_000_000)


def parse_bootstrap(text: bytes) -> dict[str, Any]:
    """Parse ``text`` (YAML or JSON) with libyaml into a mapping; raises BootstrapError, also for a duplicate field."""
    try:
        tree = yamltext.load(text, BOUNDS, unique=True)
    except (yaml.YAMLError, ValueError) as error:
        reason = yamltext.reason(error)
        raise BootstrapError([Problem("bootstrap", f"is not YAML: {reason}", line=yamltext.line(error))]) from None
    if not isinstance(tree, dict):
        raise BootstrapError([Problem("bootstrap", "is not a mapping")])
    if problems := double_spellings(tree):
        raise BootstrapError(problems)
    return tree
