"""From a picture to its XMP: merged into what is there, found again, made anew, and put into the picture itself."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from PIL import Image

from florence_daemon.config import FolderConfig, ModelConfig
from florence_daemon.config_checks import BadSetting
from florence_daemon.config_output import OutputConfig
from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine.protocol import Answer, Ask
from florence_daemon.folders import atomic
from florence_daemon.folders.atomic import content_of
from florence_daemon.folders.xmp import Words, merge
from florence_daemon.folders.xmp_packet import DC, Packet
from tests.conftest import FakeEngine, RunningDaemon, wait_for
from tests.test_worker import Setup

PROMPTS = ("CAPTION", "GENERATE_TAGS")
XMP = OutputConfig(prompts=PROMPTS, ext="xmp")
needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")


def say(caption: str, *tags: str) -> Callable[[Ask], Answer]:
    return lambda ask: Answer(ask.prompt, ", ".join(tags) if ask.prompt == "<GENERATE_TAGS>" else caption)


@pytest.fixture
def setup(engine: FakeEngine, tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(engine, tmp_path)
    setup.folder = FolderConfig(path=tmp_path, outputs=(XMP,))
    engine.answer = say("A cat", "cat", "mat")
    yield setup
    setup.ledger.close()


def caption_all(setup: Setup) -> list[str]:
    """Caption what a scan finds lacking; return the names."""
    lacking = setup.lacking()
    for name in lacking:
        setup.submit(setup.image.with_name(name))
    setup.hand_over_all()
    return lacking


def told(path: Path) -> tuple[str | None, list[str]]:
    packet = Packet(path.read_bytes())
    return packet.default_text((DC, "description")), packet.values((DC, "subject"))


def test_xmp_is_called_as_photo_programs_call_it_and_written_once(setup: Setup, engine: FakeEngine) -> None:
    assert caption_all(setup) == ["a.jpg"]
    assert sorted(os.listdir(setup.folder.path)) == ["a.jpg", "a.jpg.xmp"]
    assert told(setup.image.with_name("a.jpg.xmp")) == ("A cat", ["cat", "mat"])
    assert caption_all(setup) == []
    assert setup.reasons() == {}


@pytest.mark.parametrize("name", ["a.xmp", "a.jpg.xmp"])
def test_persons_xmp_is_merged_into_once_under_its_own_name(setup: Setup, engine: FakeEngine, name: str) -> None:
    theirs = setup.image.with_name(name)
    theirs.write_bytes(merge(None, Words("Minka", ("Minka",), "x")).replace(b"florence:Model", b"florence:Other"))
    assert caption_all(setup) == ["a.jpg"]
    assert caption_all(setup) == []
    assert sorted(os.listdir(setup.folder.path)) == sorted(["a.jpg", name])
    assert "cat" in told(theirs)[1]


def test_persons_xmp_that_comes_just_before_ours_is_merged_into_at_the_next_look(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = setup.image.with_name("a.jpg.xmp")
    write = atomic.Directory.write

    def come_and_write(*arguments: Any) -> bool:
        theirs.write_bytes(merge(None, Words("Minka", ("Minka",), "x")).replace(b"florence:Model", b"florence:Other"))
        return write(*arguments)

    monkeypatch.setattr(atomic.Directory, "write", come_and_write)
    caption_all(setup)
    assert told(theirs) == ("Minka", ["Minka"])
    monkeypatch.undo()
    assert caption_all(setup) == ["a.jpg"]
    assert "cat" in told(theirs)[1]
    assert caption_all(setup) == []


def test_without_its_ledger_the_file_tells_that_all_is_said(setup: Setup, engine: FakeEngine) -> None:
    caption_all(setup)
    setup.ledger.forget(str(setup.image))
    assert caption_all(setup) == []
    assert len(engine.asked) == 1


def test_stale_replaces_our_words_and_leaves_a_persons(setup: Setup, engine: FakeEngine) -> None:
    setup.folder = attrs.evolve(setup.folder, overwrite="stale")
    caption_all(setup)
    path = setup.image.with_name("a.jpg.xmp")
    path.write_bytes(
        path.read_bytes().replace(b"<rdf:li>cat</rdf:li>", b"<rdf:li>cat</rdf:li><rdf:li>Minka</rdf:li>", 1)
    )
    assert caption_all(setup) == []
    setup.model = ModelConfig(name="another")
    engine.answer = say("A tabby", "cat", "rug")
    assert caption_all(setup) == ["a.jpg"]
    assert told(path) == ("A tabby", ["cat", "Minka", "rug"])
    assert caption_all(setup) == []


def test_broken_xmp_is_named_and_left_alone_and_the_other_sidecars_stay_possible(
    setup: Setup, engine: FakeEngine
) -> None:
    theirs = setup.image.with_name("a.jpg.xmp")
    theirs.write_bytes(b"<x:xmpmeta")
    assert caption_all(setup) == ["a.jpg"]
    assert theirs.read_bytes() == b"<x:xmpmeta"
    assert "its XMP cannot be read, so nothing was merged into it" in setup.reasons()["a.jpg"]
    assert caption_all(setup) == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"prompt": "OD", "ext": "xmp"}, "finds places"),
        ({"prompts": PROMPTS, "ext": "xmp", "template": "{caption}, {tags}"}, "keeps captions and tags apart"),
        ({"prompt": "CAPTION", "ext": "txt", "embed": True}, "with ext xmp alone"),
    ],
)
def test_setting_that_xmp_cannot_have_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSetting, match=problem):
        OutputConfig(**settings)


def test_embed_without_exiftool_is_a_setting_that_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadSetting, match="needs exiftool, which is not installed; install it"):
        OutputConfig(prompts=PROMPTS, ext="xmp", embed=True)


def draw(path: Path) -> bytes:
    path.write_bytes(encode_picture(draw_picture(random.Random("road"), (320, 240)).image))
    return path.read_bytes()


def pixels(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


@needs_exiftool
@pytest.mark.parametrize("overwrite", ["never", "stale", "always"])
def test_picture_that_words_were_put_into_is_no_new_picture(setup: Setup, engine: FakeEngine, overwrite: str) -> None:
    embedding = OutputConfig(prompts=PROMPTS, ext="xmp", embed=True)
    text = OutputConfig(prompt="CAPTION", ext="txt")
    before = draw(setup.image)
    setup.folder = attrs.evolve(setup.folder, outputs=(text,), overwrite=overwrite)
    caption_all(setup)
    setup.folder = attrs.evolve(setup.folder, outputs=(text, embedding))
    engine.content = content_of(str(setup.image))
    assert caption_all(setup) == ["a.jpg"]
    after = setup.image.read_bytes()
    assert after != before
    assert pixels(after) == pixels(before)
    found = subprocess.run(["exiftool", "-json", str(setup.image)], capture_output=True, check=True).stdout
    assert json.loads(found)[0]["Subject"] == ["cat", "mat"]
    assert caption_all(setup) == []
    assert len(engine.asked) == 2, "neither the one nor the other sidecar is made anew"
    assert setup.reasons() == {}


@needs_exiftool
def test_picture_that_takes_no_words_keeps_its_content_and_is_listed(setup: Setup, engine: FakeEngine) -> None:
    setup.folder = attrs.evolve(setup.folder, outputs=(OutputConfig(prompts=PROMPTS, ext="xmp", embed=True),))
    assert caption_all(setup) == ["a.jpg"]
    assert setup.image.read_bytes() == b"picture"
    assert "nothing was put into the picture itself, which stays as it is: exiftool refused" in setup.reasons()["a.jpg"]
    assert not setup.image.with_name("a.jpg.xmp").exists()


@needs_exiftool
def test_real_daemon_captions_a_photo_folder_once(start_daemon: Callable[..., RunningDaemon], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    before = draw(folder / "a.png")
    daemon = start_daemon(
        config=f"model: {{name: demo}}\nfolders:\n  - path: {folder}\n    settle_s: 0.3\n    overwrite: stale\n"
        "    outputs: [{prompts: [CAPTION, GENERATE_TAGS], ext: xmp, embed: true}]\n"
    )
    wait_for(lambda: (folder / "a.png.xmp").exists() and daemon.get("/status")["queue"]["captioned"], 90)
    embedded = (folder / "a.png").read_bytes()
    draw_picture(random.Random("next"), (320, 240)).image.save(folder / "b.png")
    wait_for(lambda: daemon.get("/status")["queue"]["captioned"] >= 2, 90)
    daemon.get("/status")
    assert (folder / "a.png").read_bytes() == embedded
    assert pixels(embedded) == pixels(before)
    assert daemon.text().count("a.png: <CAPTION>") == 1
    assert sorted(os.listdir(folder)) == ["a.png", "a.png.xmp", "b.png", "b.png.xmp"]
