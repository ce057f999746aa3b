"""The words of log lines, errors, help texts and documents are those that operators and the field's code use."""

from __future__ import annotations

import re

import pytest

from tests.support.readmes import NAMES, text_of

# Left column of the glossary: words that somebody who searches a log or a document does not expect.
AVOIDED = re.compile(
    r"\b(told|tell|tells|said|asked|asks|hears?|worr(?:y|ies)|anew|for good|as far as|for want of|of its own|"
    r"(?:go|goes|gone|going) on with|taken over|stands? in|stand-ins?|meanwhile|patience|outward|folded)\b",
    re.IGNORECASE,
)


def prose(name: str) -> str:
    """A document without its code and its quotations."""
    text = re.sub(r"^```.*?^```$", "", text_of(name), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`|\"[^\"\n]*\"", "", text)


@pytest.mark.parametrize("name", [*NAMES, "CHANGELOG.md"])
def test_documents_have_plain_words(name: str) -> None:
    avoided = [
        (number, line)
        for number, line in enumerate(prose(name).splitlines(), 1)
        if AVOIDED.search(line) and not line.startswith("| ")
    ]
    assert avoided == []
