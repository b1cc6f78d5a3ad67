"""A Windows under Wine for the tests: a Windows Python that imports this checkout, and NSSM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path, PureWindowsPath

ROOT = Path(__file__).parents[2]
BENCH = ROOT / ".windows-bench"

# Holds the desktop open: else the first program that shows interest in it starts one, which keeps its pipes for ever.
HOLD = "import ctypes, sys; ctypes.windll.user32.GetDesktopWindow(); sys.stdout.write('held'); sys.stdout.flush(); "
HOLD += "sys.stdin.read()"


def what_is_missing() -> str:
    """Why no Windows can be had here; empty when it can."""
    if shutil.which("wine") is None:
        return "there is no wine command (Debian: apt install wine wine64)"
    if not (BENCH / "made").exists():
        return "tools/windows_bench.sh has not made the Windows Python and NSSM"
    return ""


class Windows:
    """One installation of Windows, in a directory of its own."""

    def __init__(self, prefix: Path) -> None:
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG", "LC_ALL") or name.startswith("COVERAGE_")
        } | {
            "HOME": str(prefix.parent),
            "WINEPREFIX": str(prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
        }
        self.drive_c = prefix / "drive_c"
        self._run(["wineboot", "-i"], 600)
        self._run(["wineserver", "-w"], 300)
        # The server and the services would outlive the first command, with its pipes in their hands.
        self._run(["wineserver", "-p"], 120)
        self._holder = subprocess.Popen(
            ["wine", str(BENCH / "python" / "python.exe"), "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.read(4) == b"held"

    def close(self) -> None:
        """End everything that runs in it."""
        self._holder.communicate()
        self._run(["wineserver", "-k"], 120)

    def python(
        self, *arguments: str, timeout_s: float = 300, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the Windows Python to its end."""
        return self.run(str(BENCH / "python" / "python.exe"), *arguments, timeout_s=timeout_s, environment=environment)

    def nssm(self, *words: str) -> str:
        """Ask NSSM and return what it says."""
        return self.run(str(BENCH / "nssm.exe"), *words).stdout.replace("\0", "").replace("\r", "").strip()

    def run(
        self, *command: str, timeout_s: float = 300, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a Windows program to its end."""
        return subprocess.run(
            ["wine", *command],
            input="",
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            env=self.environment | (environment or {}),
            cwd=self.drive_c,
            check=False,
        )

    def here(self, path: PureWindowsPath) -> Path:
        """Where a path of drive C: is outside."""
        return self.drive_c.joinpath(*path.parts[1:])

    def _run(self, command: list[str], timeout_s: float) -> None:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environment,
            timeout=timeout_s,
            check=False,
        )


def seen_from_windows(path: Path) -> PureWindowsPath:
    """What Windows calls a path outside."""
    return PureWindowsPath("Z:" + str(path.absolute()).replace("/", "\\"))
