"""Regular expressions of RE2."""

from __future__ import annotations

import pytest

from kumadp.resources.expressions import MAX_SIZE, BadExpression, compiled, problem_of


def test_a_search() -> None:
    search = compiled(rb"^http\..*_(ok|error)$")
    assert search(b"http.ingress_ok")
    assert not search(b"tcp.ingress_ok")


@pytest.mark.parametrize("expression", ["", "a+", r"\pL", "(?i)a"])
def test_valid_expressions(expression: str) -> None:
    assert problem_of(expression) == ""


@pytest.mark.parametrize("expression", ["(", "(?=a)", r"(a)\1", "a{1001}"])
def test_invalid_expressions(expression: str) -> None:
    assert problem_of(expression) != ""
    with pytest.raises(BadExpression):
        compiled(expression.encode())


def test_the_size_is_limited() -> None:
    assert problem_of("a" * MAX_SIZE) == ""
    assert problem_of("a" * (MAX_SIZE + 1)) == "it is longer than 16 KiB"
