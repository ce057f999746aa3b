"""Finds the resource that Envoy rejects a response for: by its name in Envoy's text, else by trying fewer and fewer."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kumadp.relay.resources import Key, XdsResource

# Rejections after which what is left is withheld without further attempts: 2^12 resources, one of them bad.
MOST_ATTEMPTS = 12
MOST_REFUSED = 1024
# Characters of Envoy's text that are searched, and that are remembered.
LONGEST_TEXT, LONGEST_REASON = 64 << 10, 1000
# Envoy writes `Error adding/updating cluster(s) NAME: reason, NAME: reason`, and names in quotes.
_SEPARATORS = re.compile(r"[\s'\"`]+")
_PUNCTUATION = ":,;.()"
# So begins a text that names all clusters or listeners that it is about.
_NAMING = "Error adding/updating"


class Narrowing:
    """What one Envoy rejects of one type. ``refused``: resources and Envoy's text; ``pending`` groups are tried later.

    ``retried`` ones are given to it although an Envoy has rejected them. ``is_unclear``: the last rejection may be
    about what was sent before.

    If Envoy's text names resources, only these are refused. Otherwise the new ones are tried in halves, so that good
    resources next to a bad one are applied.
    """

    def __init__(self) -> None:
        self.refused: dict[Key, str] = {}
        self.pending: deque[tuple[Key, ...]] = deque()
        self.retried: set[Key] = set()
        self.is_unclear = False
        self._reason = ""
        self._attempts = 0

    @property
    def tried(self) -> set[Key]:
        """The keys that Envoy will be given later."""
        return {key for group in self.pending for key in group}

    def excluded(self) -> set[Key]:
        """Return the keys that Envoy is not given now."""
        return {*self.refused, *self.tried}

    def reason(self, key: Key) -> str:
        """Return Envoy's text about a resource."""
        return self.refused.get(key, self._reason)

    def rejected(
        self,
        known: Sequence[XdsResource],
        unknown: Sequence[XdsResource],
        reason: str,
        *,
        search: bool,
        unanswered: Collection[Key] = (),
    ) -> bool:
        """Envoy has rejected a response that has ``known`` resources, which an Envoy accepts, and ``unknown`` ones.

        ``search``: the reason is in Envoy's words. ``unanswered``: resources of responses before, which it may be
        about. Returns False if no resource can be withheld for it.
        """
        names = names_in(reason) if search else frozenset()
        earlier = {name for name, _ in unanswered}
        new = {resource.key for resource in unknown}
        times = Counter(name for name, _ in {*unanswered, *(key for key in new if key[0] in earlier)})
        # Of two either may be meant: they are tried again, one at a time.
        unclear = {name for name in names if times[name] > 1}
        named = [resource.key for resource in (*unknown, *known) if resource.name in names]
        suspects = [key for key in named if key[0] not in earlier or (key in unanswered and key[0] not in unclear)]
        suspects += self._late(names - unclear, unanswered)
        self.is_unclear = bool(unclear) and not suspects
        if self.is_unclear:
            return True
        is_named = bool(suspects)
        others = search and reason.startswith(_NAMING)
        suspects = suspects or [resource.key for resource in unknown or (() if others else known)]
        if not suspects:
            return False
        self.retried.difference_update(suspects)
        self._attempts += 1
        self._reason = reason[:LONGEST_REASON]
        if is_named or len(suspects) == 1 or self._attempts > MOST_ATTEMPTS:
            for key in suspects:
                self.refused[key] = self._reason
            while len(self.refused) > MOST_REFUSED:
                del self.refused[next(iter(self.refused))]
        else:
            half = len(suspects) // 2
            self.pending += (tuple(suspects[:half]), tuple(suspects[half:]))
        return True

    def retry(self, key: Key) -> None:
        """Give Envoy what was rejected."""
        self.refused.pop(key, None)
        self.retried.add(key)

    def _late(self, names: frozenset[str], unanswered: Collection[Key]) -> list[Key]:
        """Return which resources of an earlier response are rejected only now, and take them out of what is tried.

        Envoy 1.40 rejects clusters late: while clusters warm it sends nothing about them, and then with the nonce of
        the last response.
        """
        late = [key for key in dict.fromkeys((*self.tried, *self.refused, *unanswered)) if key[0] in names]
        if late:
            groups = (tuple(key for key in group if key not in late) for group in self.pending)
            self.pending = deque(group for group in groups if group)
        return late

    def accepted(self) -> None:
        """Envoy has accepted what it was given: the next group is tried with it."""
        self.retried.clear()
        self._attempts = self._attempts if self.pending else 0
        self.next_group()

    def next_group(self) -> bool:
        """Give Envoy the next group too; False if there is none."""
        if self.pending:
            self.pending.popleft()
            return True
        return False


def names_in(text: str) -> frozenset[str]:
    """Return the words of a text that can be names of resources."""
    return frozenset(word.strip(_PUNCTUATION) for word in _SEPARATORS.split(text[:LONGEST_TEXT])) - {""}
