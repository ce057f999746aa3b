"""Rules for tags and protocols. Kuma 3.0 has no tags, except those of a gateway, and drops them without a word."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.resources.kuma_versions import BEFORE_2_14, EVERY, KUMA_2, KUMA_3, ONLY_2_8, SINCE_2_14, Versions
from kumadp.resources.parse import join
from kumadp.resources.types import PROTOCOL, SERVICE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.resources.findings import Findings
    from kumadp.resources.types import Inbound

ZONE = "kuma.io/zone"
# Protocols of Kuma's documentation, and others that its validator accepts as well (ParseProtocol).
PROTOCOLS = ("tcp", "http", "http2", "grpc", "kafka")
_MORE_PROTOCOLS = ("tls", "mysql")
_TAG_NAME = re.compile(r"[A-Za-z0-9._:/-]+")
_TAG_VALUE = re.compile(r"[A-Za-z0-9._:-]+")


def check_inbound_tags(path: str, inbound: Inbound, findings: Findings) -> None:
    """Check tags and protocol of the inbound at ``path``."""
    tags = inbound.tags
    _check_service(f"{path}.tags", tags, findings, KUMA_2)
    tag = tags.get(PROTOCOL)
    at = f'{path}.tags["{PROTOCOL}"]'
    if tag is not None and tag.lower() not in {*PROTOCOLS, *_MORE_PROTOCOLS}:
        findings.fail(at, f"{tag!r} is not known", f"one of {', '.join(PROTOCOLS)}", KUMA_2)
    elif tag is not None and tag.lower() == "mysql":
        findings.fail(at, f"{tag!r} is not known", f"one of {', '.join(PROTOCOLS)}", ONLY_2_8)
    _check_protocol(path, inbound, findings)
    check_tag_characters(f"{path}.tags", _without_protocol(tags), findings, KUMA_2)
    ignored = [name for name in tags if name != PROTOCOL]
    if ignored:
        findings.ignored(f"{path}.tags", "policies and services select by labels", KUMA_3)


def _check_protocol(path: str, inbound: Inbound, findings: Findings) -> None:
    field, tag = inbound.protocol_name, inbound.tags.get(PROTOCOL, "")
    if not field:
        # Kuma 3.0 has no protocol kafka, and forwards it as TCP, which it was before.
        if tag.lower() not in {"", "tcp", "kafka"}:
            consequence = "without the field protocol this inbound is plain TCP"
            hint = f"add protocol: {tag.lower()} beside the tags"
            findings.ignored(f'{path}.tags["{PROTOCOL}"]', hint, KUMA_3, consequence=consequence, quiet=False)
        return
    if field.lower() not in {*PROTOCOLS, *_MORE_PROTOCOLS}:
        right = f"one of {', '.join(PROTOCOLS)}"
        findings.fail(f"{path}.protocol", f"{field!r} is not known", right, SINCE_2_14)
    elif field.lower() == "kafka":
        findings.fail(f"{path}.protocol", "kafka is not known", "write tcp", KUMA_3)
    if field.lower() != (tag or "tcp").lower():
        hint = f"add the tag {PROTOCOL} too"
        findings.ignored(f"{path}.protocol", hint, BEFORE_2_14, consequence=f"this inbound is {tag or 'tcp'}")


def check_gateway_tags(path: str, tags: Mapping[str, str], findings: Findings) -> None:
    """Check the tags of a gateway, whose protocol is TCP."""
    _check_service(path, tags, findings, EVERY)
    protocol = tags.get(PROTOCOL, "tcp")
    if protocol != "tcp":
        who = ONLY_2_8 if protocol.lower() == "tcp" else EVERY
        findings.fail(f'{path}["{PROTOCOL}"]', f"{protocol!r} is not known", "tcp", who)
    check_tag_characters(path, _without_protocol(tags), findings, EVERY)


def _without_protocol(tags: Mapping[str, str]) -> dict[str, str]:
    # Its value is one of few, or a problem already.
    return {name: value for name, value in tags.items() if name != PROTOCOL}


def _check_service(path: str, tags: Mapping[str, str], findings: Findings, by: Versions) -> None:
    """Check that there is a service if there are tags, which ``by`` requires; without tags there need not be one."""
    if not tags:
        findings.fail(path, "are missing", f"add {SERVICE}, for control planes before 2.14", BEFORE_2_14)
    elif not tags.get(SERVICE):
        findings.fail(f'{path}["{SERVICE}"]', "is missing", "name the service, or remove all tags", by)
    if ZONE in tags:
        findings.note(f'{path}["{ZONE}"]', "is replaced by the control plane's own zone")


def check_tag_characters(path: str, tags: Mapping[str, str], findings: Findings, by: Versions) -> None:
    """Check names and values of tags."""
    for name, value in tags.items():
        if not _TAG_NAME.fullmatch(name):
            findings.fail(join(path, name), "is not a valid tag name", "letters, digits and . _ : / -", by)
        elif not value and name != SERVICE:
            findings.fail(join(path, name), "is empty", "set a value or remove it", by)
        elif value and not _TAG_VALUE.fullmatch(value):
            hint = "letters, digits and . _ : -"
            findings.fail(join(path, name), f"{value!r} is not a valid tag value", hint, by)
