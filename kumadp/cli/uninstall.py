"""``kumadp uninstall``, which undoes ``kumadp install``."""

from kumadp.cli.install import uninstall

__all__ = ["uninstall"]
