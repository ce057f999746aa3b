"""A bootstrap text as a tree."""

from __future__ import annotations

from typing import Any

import yaml

from kumadp.errors import BootstrapError, Problem

MAX_BYTES = 16 << 20


def parse_bootstrap(text: bytes) -> dict[str, Any]:
    """The mapping in ``text`` (YAML or JSON), read with libyaml; raises BootstrapError."""
    try:
        if len(text) > MAX_BYTES:
            raise yaml.YAMLError(f"larger than {MAX_BYTES >> 20} MiB")
        tree = yaml.load(text, yaml.CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BootstrapError([Problem("bootstrap", f"is not YAML: {reason}")]) from None
    if not isinstance(tree, dict):
        raise BootstrapError([Problem("bootstrap", "is not a mapping")])
    return tree
