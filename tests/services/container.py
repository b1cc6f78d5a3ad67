"""A Debian of its own whose PID 1 is systemd, with this project and its Python mounted into it, read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

# The Python of this environment; the container has it in the same place.
PYTHON = str(Path(os.path.realpath(sys.prefix)) / "bin" / "python")
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter")
PACKAGES = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,acl,python3"
# The packed root is made once and kept: making it takes 40 to 50 s.
CACHE = Path(tempfile.gettempdir()) / "florence-daemon-tests"
PERSON = "ann"


class Container:
    """A booted container; every start begins with the same root, and what is written to it is gone at the end."""

    def __init__(self, root: Path) -> None:
        options = ["--quiet", "-D", str(root), "--volatile=overlay", "--register=no", "--keep-unit"]
        options += ["--private-network", "--console=passive", *_mounts(), "--boot"]
        self._log = (CACHE / "boot.log").open("w+b")
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0"},
            start_new_session=True,
        )
        self._leader = self._wait_until_booted()

    @property
    def root(self) -> Path:
        """The container's files, seen from outside."""
        return Path(f"/proc/{self._leader}/root")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the container as root, and let it succeed if `check`."""
        done = self._enter(self._leader, *command)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def out(self, *command: str) -> str:
        """What a command prints."""
        return self.run(*command).stdout.strip()

    def person(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as a person with a service manager of her own."""
        session = ["env", f"--chdir=/home/{PERSON}", "XDG_RUNTIME_DIR=/run/user/1000"]
        return self.run("runuser", "--user", PERSON, "--", *session, f"HOME=/home/{PERSON}", *command, check=check)

    def show(self, *properties: str, own: bool = False) -> list[str]:
        """Properties of the service, as systemd sees them."""
        ask = self.person if own else self.run
        wanted = f"--property={','.join(properties)}"
        lines = ask("systemctl", *(["--user"] if own else []), "show", wanted, "florence-daemon").stdout.splitlines()
        found = dict(line.split("=", 1) for line in lines)
        return [found[each] for each in properties]

    def journal(self) -> str:
        """What the service has said."""
        return self.out("journalctl", "--unit=florence-daemon", "--output=cat", "--no-pager")

    def close(self) -> None:
        """End it, without ceremony."""
        os.kill(self._leader, 9)
        self._nspawn.wait(120)
        self._log.close()

    def _wait_until_booted(self) -> int:
        deadline_s = time.monotonic() + 180
        while time.monotonic() < deadline_s and self._nspawn.poll() is None:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            if children:
                state = self._enter(int(children[0]), "systemctl", "is-system-running").stdout.strip()
                if state in ("running", "degraded"):
                    return int(children[0])
            time.sleep(0.2)
        self._nspawn.kill()
        self._log.seek(0)
        pytest.skip(f"systemd-nspawn cannot boot here: {self._log.read().decode(errors='replace')[-300:]}")

    @staticmethod
    def _enter(leader: int, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--target={leader}", *["-m", "-u", "-i", "-n", "-p", "-C", "--wdns=/", "--"], *command],
            capture_output=True,
            text=True,
            timeout=600,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            cwd="/",
            check=False,
        )


def boot() -> Container:
    """Boot a container, or skip the test and say what is missing for it."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not on this machine (apt install systemd-container debootstrap)")
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    return Container(_root())


def _root() -> Path:
    root, stamp = CACHE / "debian", CACHE / "debian.made"
    CACHE.mkdir(mode=0o700, exist_ok=True)
    if CACHE.stat().st_uid != 0:
        pytest.skip(f"{CACHE} belongs to somebody else")
    if not stamp.exists() or stamp.read_text() != PACKAGES:
        shutil.rmtree(root, ignore_errors=True)
        _bootstrap(root)
        stamp.write_text(PACKAGES)
    return root


def _bootstrap(root: Path) -> None:
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"]
    sources = subprocess.run(listing, capture_output=True, text=True, check=False).stdout.split()
    if len(sources) < 2:
        pytest.skip("this machine's apt names no mirror to make a Debian from")
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", sources[1], str(root), sources[0]]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"debootstrap could not make a Debian: {made.stdout[-300:]}")
    subprocess.run(["chroot", str(root), "useradd", "--create-home", PERSON], check=True)
    (root / "var/lib/systemd/linger").mkdir(parents=True, exist_ok=True)
    (root / "var/lib/systemd/linger" / PERSON).touch()
    (root / "root").chmod(0o755)  # a Python below it is mounted there, and must be within everybody's reach


def _mounts() -> list[str]:
    """Python, its environment and this working copy at the places where they are outside."""
    installed = subprocess.run(  # without this test's PYTHONPATH: what the service's Python will import
        [sys.executable, "-I", "-c", "import florence_daemon as f; print(f.__file__)"],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    here = Path(__file__).parents[2] / "florence_daemon"
    mounts = {os.path.realpath(sys.prefix): "", str(here): str(Path(installed.stdout.strip()).parent)}
    if sys.base_prefix != "/usr":
        mounts[sys.base_prefix] = ""
    return [f"--bind-ro={source}:{target}" if target else f"--bind-ro={source}" for source, target in mounts.items()]
