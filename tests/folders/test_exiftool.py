"""XMP inside a picture: exiftool puts it there, the pixels stay as they are, and so does everything of a person's."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image, ImageCms

from florence_daemon.demo_chance import draw_picture
from florence_daemon.folders import exiftool
from florence_daemon.folders.atomic import Directory, content_of
from florence_daemon.folders.exiftool import ExiftoolFailed, change_packet
from florence_daemon.folders.settle import Stamp, stamp_of
from florence_daemon.folders.xmp import Words, merge

pytestmark = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")

WORDS = Words("A cat & a <mat>", ("cat", "mat"), "demo")
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ODD = "-a b\n$(touch x) ;'\"%f\udcff."


def drawn() -> Image.Image:
    return draw_picture(random.Random("embed"), (320, 240)).image


def picture(ending: str) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    drawn().save(buffer, FORMATS[ending], exif=exif, icc_profile=PROFILE)
    return buffer.getvalue()


def embed(path: Path, words: Words = WORDS, may: Callable[[Stamp, bytes], bool] = lambda stamp, digest: True) -> bool:
    def change(old: BinaryIO, new: BinaryIO) -> bool:
        return change_packet(old, new, lambda packet: merge(packet, words))

    with Directory(str(path.parent)) as directory:
        return directory.rewrite(path.name, change, may)


def read_back(content: bytes) -> dict[str, Any]:
    ran = subprocess.run(["exiftool", "-json", "-G1", "-"], input=content, capture_output=True, check=True)
    (found,) = json.loads(ran.stdout)
    assert "ExifTool:Warning" not in found
    return dict(found)


def pixels(content: bytes) -> tuple[str, tuple[int, int], bytes]:
    with Image.open(io.BytesIO(content)) as image:
        return image.mode, image.size, image.tobytes()


@pytest.mark.parametrize("ending", FORMATS)
def test_words_are_in_the_picture_and_its_pixels_and_all_else_are_as_they_were(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    content = picture(ending)
    theirs = ["-XMP-dc:Subject=Minka", "-XMP-xmp:Rating=4", "-EXIF:Artist=Ada", "-"]
    before = subprocess.run(["exiftool", *theirs], input=content, capture_output=True, check=True).stdout
    path.write_bytes(before)

    assert embed(path)

    after = path.read_bytes()
    assert pixels(after) == pixels(before) == pixels(content)
    found = read_back(after)
    assert found["XMP-dc:Subject"] == ["Minka", "cat", "mat"]
    assert found["XMP-dc:Description"] == "A cat & a <mat>"
    assert found["XMP-lr:HierarchicalSubject"] == found["XMP-digiKam:TagsList"] == ["cat", "mat"]
    ours = {name for name in found if name.startswith("XMP-")}
    there = read_back(before)
    changes = {name for name in there if there[name] != found.get(name)} - ours
    assert {name.partition(":")[0] for name in changes} <= {"System", "File", "IFD0", "Composite"}, changes
    assert found["IFD0:Make"] == "A camera"
    assert found["IFD0:Artist"] == "Ada"
    with Image.open(path) as image:
        assert image.info["icc_profile"] == PROFILE


def test_same_words_again_write_nothing_and_newer_ones_take_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(picture("jpg"))
    assert embed(path)
    stamp = stamp_of(str(path))
    assert not embed(path)
    assert stamp_of(str(path)) == stamp
    assert embed(path, Words("Another", ("dog",), "another"))
    assert read_back(path.read_bytes())["XMP-dc:Subject"] == "dog"


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither such names nor modes")
def test_any_name_is_safe_and_mode_and_attributes_stay(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/" + os.fsencode(ODD + "jpg")))
    path.write_bytes(picture("jpg"))
    path.chmod(0o6640)
    told: list[tuple[Stamp, bytes]] = []
    assert embed(path, may=lambda stamp, digest: told.append((stamp, digest)) is None)
    assert os.listdir(tmp_path) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "but not the bits by which a program becomes its owner"
    ((stamp, digest),) = told
    now = stamp_of(str(path))
    assert now is not None
    assert (now.size_bytes, now.mtime_ns) == (stamp.size_bytes, stamp.mtime_ns), "what the ledger notes beforehand"
    assert content_of(str(path)) == digest


def test_picture_stays_as_it_is_when_something_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(picture("jpg"))
    before = path.read_bytes()
    assert not embed(path, may=lambda stamp, digest: False)
    broken = tmp_path / "b.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ExiftoolFailed, match=r"exiftool refused: Error: .* is not supported"):
        embed(broken)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ExiftoolFailed, match="exiftool is not installed; install it"):
        embed(path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "b.jpg"]


def test_exiftool_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "exiftool"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(exiftool, "LIMIT_S", 0.5)
    path = tmp_path / "a.jpg"
    path.write_bytes(picture("jpg"))
    with pytest.raises(ExiftoolFailed, match=r"took longer than 0\.5 s"):
        embed(path)


def test_xmp_in_several_pieces_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    (tmp_path / "long.txt").write_text("x " * 50_000)
    write = ["exiftool", f"-XMP-dc:Title<={tmp_path / 'long.txt'}", "-"]
    before = subprocess.run(write, input=picture("jpg"), capture_output=True, check=True).stdout
    path.write_bytes(before)
    with pytest.raises(ExiftoolFailed, match="several pieces"):
        embed(path)
    assert path.read_bytes() == before


def test_xmp_as_large_as_no_program_writes_it_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture("png"))
    assert embed(path)
    before = path.read_bytes()
    monkeypatch.setattr(exiftool, "MOST_BYTES", 500)
    with pytest.raises(ExiftoolFailed, match="more than 500 are not read"):
        embed(path, replace(WORDS, description="another"))
    assert path.read_bytes() == before
