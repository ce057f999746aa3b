"""What Envoy rejected, for log and status. Nothing of Envoy's text about secrets is shown: it may quote them."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from kumadp.host.log.secrets import redact
from kumadp.relay.messages import SECRET
from kumadp.relay.resources import policies
from kumadp.relay.texts import one_line, short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kumadp.relay.actions import ResponseRejected
    from kumadp.relay.resources import Key
    from kumadp.relay.snapshot import KeptSockets
    from kumadp.relay.subscription import TypeView, WithheldResource

# Entries of the status.
MOST_SHOWN = 50


class Rejections:
    """Follows what ``withheld`` returns: the resources that Envoy is not given.

    ``retry_at`` returns when Envoy is given one again, by the relay's clock; None if it is not.
    """

    def __init__(
        self, withheld: Callable[[], Sequence[WithheldResource]], retry_at: Callable[[Key], float | None]
    ) -> None:
        self._withheld = withheld
        self._retry_at = retry_at
        self._since: dict[tuple[str, str, bytes], float] = {}
        self.last: dict[str, object] | None = None

    def add(self, rejected: ResponseRejected) -> str:
        """Take a rejection; return the line for the log."""
        type_url, version, by_guard = rejected.type_url, one_line(rejected.version), rejected.by_guard
        reason = _shown(type_url, rejected.reason) if not by_guard else one_line(redact(rejected.reason))
        now = round(time.time(), 3)
        self.last = {"type": type_url, "version": version, "reason": reason, "at": now, "by_guard": by_guard}
        self._note(now)
        verdict = "withheld from Envoy" if by_guard else "rejected by Envoy"
        return f"{short_name(type_url)} {version} is {verdict}{reason and ': '}{reason}"

    def _note(self, now: float) -> Sequence[WithheldResource]:
        withheld = self._withheld()
        keys = [(each.type_url, each.name, each.digest) for each in withheld]
        self._since = {key: self._since.get(key, now) for key in keys}
        return withheld

    def status(self, epoch: float) -> tuple[list[dict[str, object]], Counter[str]]:
        """Return the withheld resources in JSON types, at most 50, and how many there are of each type.

        Times are in seconds since 1970; ``epoch`` is the time of the relay's clock at 0.
        """
        withheld = self._note(round(time.time(), 3))
        shown: list[dict[str, object]] = [
            {
                "type": each.type_url,
                "name": one_line(each.name),
                "reason": _shown(each.type_url, each.reason),
                "policies": list(policies(each.resource)),
                "since": self._since[each.type_url, each.name, each.digest],
                "retry_at": None if (at := self._retry_at((each.name, each.digest))) is None else round(epoch + at, 3),
            }
            for each in withheld[:MOST_SHOWN]
        ]
        return shown, Counter(each.type_url for each in withheld)


def _shown(type_url: str, reason: str) -> str:
    return "" if type_url == SECRET else one_line(redact(reason))


def sockets_status(kept: Sequence[KeptSockets]) -> dict[str, object]:
    """Return the keys of the status about listeners whose sockets Envoy keeps, at most 50; unbound ones first."""
    shown = [
        {"listener": one_line(each.name), "reuse_port": each.reuse_port, "bound": each.bound}
        for each in sorted(kept, key=lambda each: each.bound)[:MOST_SHOWN]
    ]
    return {"kept_sockets": shown, "kept_sockets_count": len(kept)}


def type_status(view: TypeView, withheld: int, epoch: float, changed: float | None) -> dict[str, object]:
    """Return the status of a type in JSON types; ``withheld`` resources, ``changed`` by the clock of ``epoch``."""
    return {
        "type": view.type_url,
        "accepted": view.accepted,
        "latest": view.latest,
        "open": view.open,
        "names": view.names,
        "rejected": view.rejections,
        "withheld": view.withheld,
        "withheld_resources": withheld,
        "changed": None if changed is None else round(epoch + changed, 3),
    }
