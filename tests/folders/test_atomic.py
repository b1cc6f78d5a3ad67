"""A file is written whole or not at all, and only in the directory that was looked at."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from florence_daemon.folders.atomic import (
    OLD_S,
    PREFIX,
    UNFINISHED,
    Directory,
    content_of,
    remove_left_behind,
    unfinished_name,
)
from florence_daemon.folders.pauses import can_write_in


def write(directory: Path, content: bytes, *, replace: bool) -> bool:
    with Directory(str(directory)) as opened:
        return opened.write("a.txt", content, lambda: replace)


def test_file_is_written_once_and_replaced_only_when_allowed(tmp_path: Path) -> None:
    assert write(tmp_path, b"one", replace=False)
    assert not write(tmp_path, b"two", replace=False)
    assert (tmp_path / "a.txt").read_bytes() == b"one"
    assert write(tmp_path, b"three", replace=True)
    assert (tmp_path / "a.txt").read_bytes() == b"three"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    write(tmp_path, b"one", replace=False)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_file_system_without_hard_links_gets_its_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert write(tmp_path, b"one", replace=False)
    assert not write(tmp_path, b"two", replace=False)
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"one"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such attributes and owners")
def test_new_version_keeps_its_group_and_a_share_without_attributes_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"old")
    (tmp_path / "a.jpg").chmod(0o640)
    given: list[tuple[int, int]] = []

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def give(file: int, owner: int, group: int) -> None:
        if owner != -1:  # as the system does for all but root
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        given.append((owner, group))

    monkeypatch.setattr(os, "listxattr", refuse)
    monkeypatch.setattr(os, "fchown", give)
    with Directory(str(tmp_path)) as opened:
        assert opened.rewrite("a.jpg", lambda old, new: bool(new.write(old.read() + b", new")), lambda *_: True)
    assert (tmp_path / "a.jpg").read_bytes() == b"old, new"
    assert (tmp_path / "a.jpg").stat().st_mode & 0o777 == 0o640
    assert given == [(-1, (tmp_path / "a.jpg").stat().st_gid)]


def test_nothing_is_written_where_the_path_leads_by_then(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with Directory(str(pictures)) as opened:
        pictures.rename(tmp_path / "elsewhere")
        pictures.mkdir()
        opened.write("a.txt", b"one", lambda: False)
    assert os.listdir(pictures) == []
    assert os.listdir(tmp_path / "elsewhere") == ["a.txt"]


def test_directory_that_became_a_link_is_not_opened_and_a_root_that_is_one_is(tmp_path: Path) -> None:
    (tmp_path / "outside" / "sub").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "link").symlink_to("sub")
    root = str(tmp_path / "root")
    for path in (root, f"{root}/sub"):
        with Directory(path, root) as opened:
            assert opened.write("a.txt", b"one", lambda: False)
    with pytest.raises(NotADirectoryError):
        Directory(f"{root}/link", root)
    with Directory(f"{root}/link") as opened:
        assert opened.stamp_of("a.txt") is not None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among files")
def test_only_regular_files_have_a_content(tmp_path: Path) -> None:
    """A pipe beside a picture would hold up for ever who opens it, and /dev/zero has no end."""
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with Directory(str(tmp_path)) as opened:
        assert opened.digest_of("a") == opened.digest_of("b") == content_of(str(tmp_path / "a"))
        assert [opened.digest_of(name) for name in ("link", "pipe", "none")] == [None] * 3


def test_directory_that_was_removed_gets_nothing(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with Directory(str(pictures)) as opened:
        shutil.rmtree(pictures)
        with pytest.raises(FileNotFoundError):
            opened.write("a.txt", b"one", lambda: False)
    assert os.listdir(tmp_path) == []


def test_link_that_somebody_laid_at_the_hidden_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda count: "ab" * count)
    (tmp_path / "passwords").write_bytes(b"theirs")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / unfinished_name()).symlink_to(tmp_path / "passwords")
    with pytest.raises(FileExistsError):
        write(inbox, b"one", replace=True)
    (inbox / unfinished_name()).symlink_to(tmp_path / "passwords")
    assert not can_write_in(str(inbox))
    assert (tmp_path / "passwords").read_bytes() == b"theirs"


def test_names_of_unfinished_files_cannot_be_guessed_and_are_known_again() -> None:
    first, second = unfinished_name(), unfinished_name()
    assert first != second
    assert UNFINISHED.fullmatch(first)


def test_unfinished_files_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        "dead": f"{PREFIX}aaaaaaaaaaaa-{ended.pid}",
        "living": f"{PREFIX}bbbbbbbbbbbb-{os.getpid()}",
        "old": f"{PREFIX}cccccccccccc-{os.getpid()}",
        "theirs": ".florence-daemon.yaml",
    }
    for name in names.values():
        (tmp_path / name).write_bytes(b"x")
    then_s = time.time() - 2 * OLD_S
    for name in ("old", "theirs"):
        os.utime(tmp_path / names[name], (then_s, then_s))
    remove_left_behind(str(tmp_path), frozenset(os.listdir(tmp_path)))
    assert sorted(os.listdir(tmp_path)) == sorted([names["living"], names["theirs"]])


def test_file_that_is_being_written_stays_though_the_clock_jumps(tmp_path: Path) -> None:
    with Directory(str(tmp_path)) as directory, directory.writing("a.txt", lambda: True) as file:
        file.write(b"new")
        (unfinished,) = os.listdir(tmp_path)
        os.utime(tmp_path / unfinished, (0, 0))
        remove_left_behind(str(tmp_path), frozenset([unfinished]))
    assert (tmp_path / "a.txt").read_bytes() == b"new"


CALLS = ("openat", "write", "fsync", "linkat", "rename", "renameat", "renameat2", "unlinkat", "close")
WRITE = """
import sys
from florence_daemon.folders.atomic import Directory
with Directory(sys.argv[1]) as directory:
    print("ready", flush=True)
    sys.stdin.read()
    directory.write("a.txt", b"new" * 1000, lambda: True)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed here")
@pytest.mark.parametrize("before", [b"", b"old" * 2000])
def test_kill_at_any_system_call_leaves_the_old_file_or_the_new_one(tmp_path: Path, before: bytes) -> None:
    outcomes = []
    for call in CALLS:
        for number in range(1, 4):
            directory = tmp_path / f"{call}-{number}"
            directory.mkdir()
            if before:
                (directory / "a.txt").write_bytes(before)
            was_killed = kill_at_call(directory, call, number)
            content = (directory / "a.txt").read_bytes() if (directory / "a.txt").exists() else b""
            assert content in (before, b"new" * 1000), f"torn at {call} {number}"
            if not was_killed:
                break
            outcomes.append(content == before)
    assert outcomes.count(True) >= 4, "killed before the file had its name"
    assert outcomes.count(False) >= 2, "killed after it had its name"


def kill_at_call(directory: Path, call: str, number: int) -> bool:
    """Let a process write and kill it at the n-th call of this kind; tell whether it came to that."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    inject = f"inject={call}:signal=KILL:when={number}"
    tracer = subprocess.Popen(
        ["strace", "-p", str(process.pid), "-e", f"trace={call}", "-e", inject],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    process.stdin.close()
    tracer.communicate()
    process.stdout.close()
    return process.wait() == -signal.SIGKILL
