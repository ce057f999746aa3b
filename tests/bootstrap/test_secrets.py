"""What of a bootstrap may be stripped: the token goes, another secret is found with its place."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.secrets import secret_in, with_token, without_token

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
CAPTURED = sorted(path.parent.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*/bootstrap.yaml"))
KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n"


def captured(name: str) -> dict[str, Any]:
    return parse_bootstrap((CAPTURES / name / "bootstrap.yaml").read_bytes())


@pytest.mark.parametrize("name", CAPTURED)
def test_the_token_goes_and_nothing_else(name: str) -> None:
    tree = captured(name)
    original = copy.deepcopy(tree)
    stripped = without_token(tree)
    assert tree == original
    assert secret_in(tree).endswith("initialMetadata[0]")
    assert secret_in(stripped) == ""
    assert "TOKEN" not in json.dumps(stripped)
    # An ingress has no health discovery.
    for config in filter(None, (tree["dynamicResources"]["adsConfig"], tree.get("hdsConfig"))):
        config["grpcServices"][0]["initialMetadata"] = []
    assert stripped == tree


@pytest.mark.parametrize("name", CAPTURED)
def test_the_token_is_put_back_where_it_was(name: str) -> None:
    tree = captured(name)
    token = tree["dynamicResources"]["adsConfig"]["grpcServices"][0]["initialMetadata"][0]["value"]
    stripped = without_token(tree)
    original = copy.deepcopy(stripped)
    assert with_token(stripped, token) == tree
    assert stripped == original
    assert with_token(tree, "another") == tree
    assert with_token(stripped, "") == stripped


def test_other_headers_stay() -> None:
    service = {"initial_metadata": [{"key": "Authorization", "value": "TOKEN"}, {"key": "x-tenant", "value": "blue"}]}
    assert without_token({"a": [service]}) == {"a": [{"initial_metadata": [{"key": "x-tenant", "value": "blue"}]}]}


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("privateKey", {"inlineString": "x"}, "secrets[0].privateKey"),
        ("private_key", {"inline_bytes": "eA=="}, "secrets[0].private_key"),
        ("privateKey", {"filename": "/etc/key.pem"}, ""),
        ("privateKey", {"environmentVariable": "KEY"}, ""),
        ("password", {"inlineString": "x"}, "secrets[0].password"),
        ("genericSecret", {"secret": {"inlineString": "x"}}, "secrets[0].genericSecret"),
        ("accessToken", "x", "secrets[0].accessToken"),
        ("other", {"inlineString": KEY}, "secrets[0].other.inlineString"),
        ("other", {"inlineBytes": base64.b64encode(KEY.encode()).decode()}, "secrets[0].other.inlineBytes"),
        ("other", {"inlineString": KEY.replace("EC PRIVATE KEY", "CERTIFICATE")}, ""),
    ],
)
def test_another_secret_is_detected(field: str, value: Any, path: str) -> None:
    assert secret_in({"secrets": [{field: value}]}) == path
