"""Puts all parts together. The only file, with `sources`, that knows every feature."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from kumadp.errors import KumadpError, PortsTaken, Problem
from kumadp.host.environment import child_environment, on_kubernetes
from kumadp.host.ports import check_ports_async
from kumadp.host.workdir import open_work_dir
from kumadp.lifecycle.component import Stack
from kumadp.lifecycle.drain import Step, plan_drain
from kumadp.lifecycle.loop import PartEnded, RunLoop
from kumadp.lifecycle.phases import Phase
from kumadp.lifecycle.plan import (
    LOOPBACK,
    envoy_addresses,
    envoy_budget,
    own_addresses,
    plan_dns,
    plan_probes,
)
from kumadp.lifecycle.readiness import ReadinessServer
from kumadp.lifecycle.sources import KumaSource, StandaloneSource, Versions
from kumadp.lifecycle.status import Status
from kumadp.process.supervise import ChildState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.envoy.component import EnvoyComponent
    from kumadp.lifecycle.component import Component
    from kumadp.lifecycle.plan import DnsPlan, ProbesPlan
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.lifecycle")

# Kuma 2.14 bypasses its DNS gate after 15 s too: names may be late, traffic by address must not wait for ever.
DNS_GATE = 15.0


class Assembly:
    """The real daemon: what `RunLoop` drives."""
