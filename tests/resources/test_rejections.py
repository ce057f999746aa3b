"""Each rejection of a control plane names the field, its place in the file, and what to write instead."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from kumadp.resources.load import load_resource
from kumadp.resources.rejections import advise

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource

BY_TAGS = """\
type: Dataplane
mesh: default
name: web-01
networking:
  address: 127.0.0.1
  inbound:
    - port: 8080
      tags:
        kuma.io/service: web
  outbound:
    - port: 20001
      tags:
        kuma.io/service: backend
"""
GATEWAY = """\
type: Dataplane
mesh: default
name: gateway-01
networking:
  address: 127.0.0.1
  gateway:
    type: BUILTIN
    tags:
      kuma.io/service: gateway
"""
NOT_FOUND = (
    'resource "default.web-01" not found; create a Dataplane in Kuma CP first or pass it as an argument to kuma-dp'
)


def loaded(text: str) -> Resource:
    return load_resource(text, "dp.yaml")


@pytest.mark.parametrize(
    ("status", "text", "resource", "proxy_type", "parts"),
    [
        (
            422,
            "networking.outbound[0].backendRef: must be defined",
            loaded(BY_TAGS),
            "dataplane",
            ("dp.yaml:11: networking.outbound[0]: ", "by tags, which Kuma 3 does not accept", "backendRef: {kind: "),
        ),
        (
            422,
            "networking.outbound[3].backendRef: both backendRef and tags/service cannot be defined",
            None,
            "dataplane",
            ("networking.outbound[3]: ", "Kuma 2 accepts only one", "keep backendRef, remove tags"),
        ),
        (
            422,
            'networking.inbound[0].tags["kuma.io/service"]: tag has to exist',
            loaded(BY_TAGS),
            "dataplane",
            ("dp.yaml:8: networking.inbound[0].tags: ", "before Kuma 2.14 require", "add it"),
        ),
        (
            422,
            'networking.gateway.tags["kuma.io/service"]: tag has to exist',
            None,
            "dataplane",
            ("networking.gateway.tags: ", "add it"),
        ),
        (
            500,
            "",
            loaded(GATEWAY),
            "dataplane",
            ("dp.yaml:7: networking.gateway.type: ", "if the control plane is of Kuma 3", "write DELEGATED"),
        ),
        (
            500,
            "",
            None,
            "ingress",
            ("if the control plane is of Kuma 3: ", "networking.listeners: [{type: ZoneIngress, ", "no inbound"),
        ),
        (
            0,
            'unsupported proxy type "egress", only "dataplane" is supported',
            None,
            "egress",
            ("it has no proxy type egress", "networking.listeners: [{type: ZoneEgress, "),
        ),
        (0, NOT_FOUND, loaded(BY_TAGS), "dataplane", ("dp.yaml:11: networking.outbound[0]: ", "in place of tags")),
    ],
)
def test_what_to_write_instead(
    status: int, text: str, resource: Resource | None, proxy_type: str, parts: tuple[str, ...]
) -> None:
    advice = advise(status, text, resource, proxy_type)
    assert "\n" not in advice
    for part in parts:
        assert part in advice


@pytest.mark.parametrize(
    ("status", "text", "resource", "proxy_type"),
    [
        (422, "token does not fit", loaded(BY_TAGS), "dataplane"),
        (500, "", loaded(BY_TAGS), "dataplane"),
        (503, "", None, "dataplane"),
        (422, "", loaded(GATEWAY), "dataplane"),
        (404, "", None, "ingress"),
        (0, NOT_FOUND, None, "dataplane"),
        (0, 'unsupported proxy type "dataplane"', None, "dataplane"),
    ],
)
def test_what_is_not_known_gets_no_advice(status: int, text: str, resource: Resource | None, proxy_type: str) -> None:
    assert advise(status, text, resource, proxy_type) == ""


def test_a_hostile_text_takes_linear_time() -> None:
    text = "networking.outbound[1]" * 50_000
    begin = time.process_time()
    assert advise(422, text, None, "dataplane") == ""
    assert time.process_time() - begin < 10
