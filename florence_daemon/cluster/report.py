"""What failed: kept for the end of the run, and written down as it comes, so that a killed run has told it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from florence_daemon.errors import UsageError


class Report:
    """The pictures that have no caption, and why not."""

    def __init__(self, path: Path | None = None) -> None:
        """path: a file that gets a line for each; it is begun anew. Raises: UsageError when it cannot be written."""
        self.failures: list[tuple[str, str]] = []
        self._file: IO[str] | None = None
        if path is not None:
            try:
                self._file = path.open("w", encoding="utf-8")  # closed by `close`
            except OSError as error:
                raise UsageError(f"--report {path}: cannot be written: {error.strerror}") from error

    def add(self, image: str, reason: str) -> None:
        """Note a picture."""
        self.failures.append((image, reason))
        if self._file is not None:
            print(json.dumps({"image": image, "error": reason}), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
