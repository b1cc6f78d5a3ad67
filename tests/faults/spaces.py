"""A mount and user namespace of the daemon's own, in which a test may mount, unmount and lower limits."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

import pytest

# Runs what follows it there as root of that namespace only; the process keeps its id.
OWN = ("unshare", "--user", "--map-root-user", "--mount")


@cache
def why_not() -> str:
    """Why this machine gives no namespace; empty when it does."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "needs unshare and nsenter (util-linux)"
    tried = subprocess.run([*OWN, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"this machine refuses a mount namespace: {tried.stderr.strip()}"


needs_namespace = pytest.mark.skipif(bool(why_not()), reason=why_not())


def after(script: str) -> tuple[str, ...]:
    """A prefix for the daemon: in a namespace of its own, run the shell script first."""
    return (*OWN, "sh", "-ec", f'{script}\nexec "$@"', "sh")


def inside(pid: int, script: str) -> str:
    """Run a shell script in the namespace of the process; return what it prints."""
    command = ["nsenter", "--target", str(pid), "--user", "--mount", "--preserve-credentials", "sh", "-ec", script]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{script}: {ran.stderr}"
    return ran.stdout
