"""``kumadp version``."""

from __future__ import annotations

import asyncio
import os
import platform
from typing import TYPE_CHECKING

import click

from kumadp import __version__
from kumadp.errors import KumadpError

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option("-a", "--detailed", is_flag=True, help="Also print the versions of Envoy, CoreDNS and Python.")
@click.option("--binary-path", default="envoy", show_default=True, metavar="PATH", help="Envoy binary.")
@click.option("--dns-coredns-path", default="coredns", show_default=True, metavar="PATH", help="CoreDNS binary.")
def version(detailed: bool, binary_path: str, dns_coredns_path: str) -> None:
    """Print kumadp's version; with -a also those of Envoy, CoreDNS and Python."""
    if not detailed:
        click.echo(__version__)
        return
    envoy, coredns = asyncio.run(_versions(binary_path, dns_coredns_path))
    for name, text in (("kumadp", __version__), ("envoy", envoy), ("coredns", coredns)):
        click.echo(f"{name:<8} {text}")
    click.echo(f"{'python':<8} {platform.python_version()} ({platform.python_implementation()})")


async def _versions(binary_path: str, coredns_path: str) -> tuple[str, str]:
    from kumadp.dns.coredns.binary import coredns_version, find_coredns
    from kumadp.envoy.binary import find_envoy
    from kumadp.envoy.version import envoy_version
    from kumadp.host.environment import child_environment
    from kumadp.settings.model import secret_variables

    environment = child_environment(os.environ, secret_variables())

    async def envoy() -> str:
        try:
            path: Path = find_envoy(binary_path)
            return f"{(await envoy_version(path, environment)).version} ({path})"
        except KumadpError as error:
            return f"not found: {error}"

    async def coredns() -> str:
        path = find_coredns(coredns_path)
        return f"{await coredns_version(path, environment)} ({path})" if path else "not found"

    return await asyncio.gather(envoy(), coredns())
