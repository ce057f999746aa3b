"""Set-up of a command's log from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.host.log.output import setup_logging

if TYPE_CHECKING:
    from kumadp.host.log.output import LogOutput
    from kumadp.settings.model import Settings


def open_logs(settings: Settings, auto: str = "auto") -> LogOutput:
    """Start logging as configured; raises SettingsError for a file that cannot be written.

    ``auto`` is the format that ``--log-format=auto`` selects.
    """
    return setup_logging(
        level=settings.log_level,
        fmt=auto if settings.log_format == "auto" else settings.log_format,
        output_path=settings.log_output_path,
        max_files=settings.log_max_retained_files,
        max_size_mb=settings.log_max_size,
        max_age_days=settings.log_max_age,
    )
