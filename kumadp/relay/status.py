"""The section ``relay`` of the status. Times are in seconds since 1970."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Struct

from kumadp.core.schema import Time, field


class RelayedType(Struct, forbid_unknown_fields=True):
    """One type of resources on the stream."""

    type: str
    accepted: Annotated[str, field("Version that Envoy runs with.")]
    latest: Annotated[str, field("Version that the control plane sent last.")]
    open: Annotated[bool, field("Envoy has not answered yet.")]
    names: Any
    rejected: int
    withheld: Annotated[bool, field("The latest response, or a resource of it, is not given to a new Envoy.")]
    withheld_resources: Annotated[int, field("How many of its resources Envoy is not given.")]
    changed: Annotated[float | None, field("When the control plane sent the last one.")]


class Rejection(Struct, forbid_unknown_fields=True):
    """A configuration that is not given to Envoy (again)."""

    type: str
    version: str
    reason: Annotated[str, field("In Envoy's words; empty for secrets.")]
    at: Time
    by_guard: Annotated[bool, field("Two Envoys ended while they applied it; else Envoy refused it.")]


class Withheld(Struct, forbid_unknown_fields=True):
    """A resource that Envoy rejected, and is not given while its content is the same."""

    type: str
    name: str
    reason: Annotated[str, field("In Envoy's words; empty for secrets.")]
    policies: Annotated[list[str], field("KRIs of policies that the resource mentions; its fault may come from one.")]
    since: Time
    retry_at: Annotated[float | None, field("When Envoy is given it again; None: once it changes.")]


class KeptListener(Struct, forbid_unknown_fields=True):
    """A listener whose sockets Envoy keeps, against the control plane: it cannot change them while it runs."""

    listener: str
    reuse_port: Annotated[bool, field("Its sockets have SO_REUSEPORT.")]
    bound: Annotated[bool, field("It is bound to its port; if not, Envoy serves the port after the next reload.")]


class RelayStatus(Struct, forbid_unknown_fields=True):
    """The stream of configuration from the control plane."""

    state: Literal["connecting", "open", "backoff", "held-closed"]
    since: Time
    connected_since: float | None
    address: str
    protocol: Annotated[Literal["sotw", "delta"], field("Of the stream: state of the world, or delta xDS.")]
    last_error: str
    refusal: str | None
    refused_since: float | None
    silence: Annotated[float, field("For how many seconds a first question has gone unanswered.")]
    received: Annotated[float | None, field("When the last configuration came.")]
    last_rejection: Rejection | None
    withheld: Annotated[list[Withheld], field("At most 50 of them.")]
    withheld_count: Annotated[int, field("How many there are.")]
    kept_sockets: Annotated[list[KeptListener], field("At most 50 of them.")]
    kept_sockets_count: Annotated[int, field("How many there are.")]
    types: list[RelayedType]
