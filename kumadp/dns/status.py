"""The section ``dns`` of the status. Times are in seconds since 1970."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from kumadp.core.schema import field


class DnsStatus(Struct, forbid_unknown_fields=True):
    """Names of the mesh."""

    answered_by: Annotated[str, field("Who answers on the port now.")]
    corefile: Annotated[str, field("Where the Corefile of CoreDNS is from; empty before there is one.")]
