"""Options without effect with a control plane of Kuma 3, which has no DNS filter for CoreDNS and one way of naming."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.settings.model import DNS, options_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.settings.model import Settings


def only_for_kuma_2(settings: Settings, origins: Mapping[str, str]) -> tuple[str, ...]:
    """Return the options that the user set and that act with a control plane of Kuma 2 only, as they were typed.

    ``origins`` as in `kumadp.settings.resolve.Resolved`. If CoreDNS is used nevertheless, its options act.
    """
    return tuple(
        origins[option.field].split(" ", 1)[1]
        for option in options_of("run")
        if option.only_kuma_2
        and origins.get(option.field, "default") != "default"
        and not (settings.dns_mode == "coredns" and (option.group == DNS or option.field == "coredns_restart_budget"))
    )
