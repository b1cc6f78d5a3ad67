"""What the sentinel tells that device and inode do not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from florence_daemon.folders.inotify import Sentinel, limit_reached
from tests.faults.spaces import OWN, needs_namespace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def sentinel(root: Path) -> Iterator[Sentinel]:
    made = Sentinel(str(root))
    yield made
    made.close()


def test_work_in_the_folder_does_not_disturb_it(sentinel: Sentinel, root: Path) -> None:
    (root / "sub").mkdir()
    (root / "a.jpg").write_bytes(b"x")
    os.rename(root / "a.jpg", root / "sub" / "b.jpg")
    (root / "sub" / "b.jpg").unlink()
    (root / "sub").rmdir()
    assert not sentinel.is_gone()


def test_folder_that_was_made_anew_is_another_one(sentinel: Sentinel, root: Path) -> None:
    root.rmdir()
    root.mkdir()
    assert sentinel.is_gone()


def test_folder_that_was_renamed_is_gone(sentinel: Sentinel, root: Path) -> None:
    os.rename(root, root.with_name("other"))
    assert sentinel.is_gone()


@needs_namespace
def test_file_system_that_is_mounted_again_with_the_same_numbers_is_another_one(root: Path) -> None:
    code = f"""
import os, subprocess
from florence_daemon.folders.inotify import Sentinel

mount = ["mount", "-t", "tmpfs", "none", {str(root)!r}]
subprocess.run(mount, check=True)
sentinel = Sentinel({str(root)!r})
assert not sentinel.is_gone()
subprocess.run(["umount", {str(root)!r}], check=True)
subprocess.run(mount, check=True)
print(sentinel.is_gone())
"""
    ran = subprocess.run([*OWN, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "True\n", ran.stderr


@needs_namespace
def test_limit_is_named_with_the_way_to_raise_it(root: Path) -> None:
    code = f"from florence_daemon.folders.inotify import limit_reached; print(limit_reached({str(root)!r}))"

    def ask(name: str, value: int) -> str:
        script = f'echo {value} > /proc/sys/user/{name}; exec "$0" "$@"'
        command = [*OWN, "sh", "-ec", script, sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for name, advice in (("max_inotify_watches", 1_048_576), ("max_inotify_instances", 8_192)):
        assert ask(name, 0) == (f"the limit user.{name} = 0 is reached; raise it: sudo sysctl user.{name}={advice}")
        assert ask(name, 1) == ""


def test_no_limit_is_named_where_none_is_reached(root: Path) -> None:
    assert limit_reached(str(root)) == ""
    assert limit_reached(str(root / "none")) == ""
