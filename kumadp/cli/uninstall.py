"""``kumadp uninstall``, which removes the files of ``kumadp install``."""

from kumadp.cli.install import uninstall

__all__ = ["uninstall"]
