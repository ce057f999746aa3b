"""How the test control plane behaves; each may be changed while it runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Garbage(enum.Enum):
    """What is sent in place of an answer."""

    RESOURCE = "a response whose resources are no resources: Envoy rejects it"
    MESSAGE = "a gRPC message that is no discovery response"
    BYTES = "bytes that are no HTTP/2"


@dataclass
class Faults:
    """Times in seconds; as Kuma behaves unless set otherwise (2.8.8 to 3.0, universal)."""

    one_stream: bool = True
    """Refuse a second ADS stream of a node."""
    linger: float = 10.0
    """From the end of a stream until its node is free, where the Dataplane came in the node's metadata (Kuma's
    deregistration delay); a node without is free at once. An error on a stream that is registered is sent after it."""
    registering: float = 0.0
    """From the first request of a stream to its answer (Kuma: 1 s)."""
    refuse_token: Callable[[str], str] = field(default=lambda _token: "")
    """Why a stream's token is not taken; empty where it is."""
    silent: bool = False
    """Read and write down requests, answer none, on ADS and HDS."""
    deaf: bool = False
    """Accept new connections and read nothing from them, not even a TLS handshake."""
    withheld: set[str] = field(default_factory=set)
    """Type URLs that are not answered."""
    garbage: Garbage | None = None
    slow: float = 0.0
    """Before each answer; other types of the stream wait too."""
    nack_delay: float = 5.0
    """Before what was rejected is sent again, with Delta before the next response of the type; other types of the
    stream wait too (Kuma's back-off)."""
    shuffle: bool = True
    """Resources in another order in each response."""
