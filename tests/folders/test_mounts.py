"""Where a folder is mounted, and which file systems tell of changes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from florence_daemon.folders.mounts import Mount, mount_of, place_of, read_mounts

TABLE = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:40 / /srv/my\\040share rw shared:9 master:1 - nfs4 host:/export rw,vers=4.2
31 21 0:41 / /home/a/cloud rw,nosuid - fuse.rclone remote: rw
32 21 8:1 / /media/stick rw - fuseblk /dev/sdb1 rw
33 32 8:2 / /media/stick rw - ext4 /dev/sdb2 rw
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "mountinfo").write_text(TABLE)
    return tmp_path / "mountinfo"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/etc", "ext4"), ("/srv/my share/pictures", "nfs4"), ("/srv/my share", "nfs4"), ("/srv/my share too", "ext4")],
)
def test_folder_is_on_the_innermost_mount_above_it(table: Path, path: str, kind: str) -> None:
    mount = mount_of(path, read_mounts(str(table)))
    assert mount is not None
    assert mount.kind == kind


def test_of_two_mounts_at_one_place_the_last_counts(table: Path) -> None:
    mount = mount_of("/media/stick", read_mounts(str(table)))
    assert mount is not None
    assert (mount.number, mount.kind) == (33, "ext4")


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "fuse.rclone", "fuse.bindfs", "fuse"]
)
def test_file_systems_that_others_write_to_are_silent(kind: str) -> None:
    assert not Mount(1, "0:1", "/x", kind).sends_events


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "xfs", "tmpfs", "overlay", "fuseblk", "vfat", "exfat", "zfs"])
def test_local_file_systems_tell_of_changes(kind: str) -> None:
    assert Mount(1, "0:1", "/x", kind).sends_events


def test_place_is_the_same_until_the_folder_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = place_of(str(tmp_path / "a"))
    (tmp_path / "a" / "picture.jpg").write_bytes(b"x")
    assert place_of(str(tmp_path / "a")) == before
    os.rename(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").mkdir()
    assert place_of(str(tmp_path / "a")) != before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its mounts in /proc")
def test_place_changes_when_something_is_mounted_inside(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("21 1 254:0 / / rw - ext4 /dev/vda rw\n")
    before = place_of(str(tmp_path), str(table))
    assert before.silent_kind() == ""
    table.write_text(table.read_text() + f"40 21 0:50 / {tmp_path}/nas rw - cifs //nas/a rw\n")
    after = place_of(str(tmp_path), str(table))
    assert after != before
    assert after.silent_kind() == "cifs"


def test_without_a_table_the_folder_itself_is_known_still(tmp_path: Path) -> None:
    place = place_of(str(tmp_path), str(tmp_path / "none"))
    assert place.own is None
    assert place.silent_kind() == ""
    assert place.inode == os.stat(tmp_path).st_ino


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotADirectoryError):
        place_of(str(tmp_path / "file"))
