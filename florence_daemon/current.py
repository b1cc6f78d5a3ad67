"""The configuration that counts now, and what became of the last change of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from florence_daemon.config import Config
from florence_daemon.logs import printable


class Current:
    """Holds one frozen configuration at a time; whoever wants to know what counts asks for it anew.

    file: where it was read, None when there is none. error: why the file as it is now does not count, None when it
    does. needs_restart: settings of the file that count after a restart only.
    """

    def __init__(self, config: Config, file: Path | None = None) -> None:
        self.config = config
        self.file = file
        self.error: str | None = None
        self.needs_restart: tuple[str, ...] = ()

    def status(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "file": None if self.file is None else printable(str(self.file)),
            "error": self.error,
            "needs_restart": list(self.needs_restart),
        }

    def reasons(self) -> list[str]:
        """What a person should see to. Who has no token reads it too, so it tells nothing of what the file holds."""
        return ["the configuration is wrong, and the one before counts; /status says why"] if self.error else []
