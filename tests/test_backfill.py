"""A backfill's run: what it tries, in how large a window, and what ends it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from florence_daemon.backfill import WINDOW, Backfill, Outage
from florence_daemon.backfill_command import run_backfill
from florence_daemon.config import Config, FolderConfig, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.engine.protocol import Done
from florence_daemon.errors import CheckpointError, DiskFull, PictureError
from florence_daemon.folders.asking import asks_of
from florence_daemon.folders.atomic import PREFIX
from florence_daemon.folders.ledger import SET_ASIDE, Ledger
from florence_daemon.folders.records import making_of
from florence_daemon.folders.settle import stamp_of
from florence_daemon.queue import Image
from tests.conftest import clean_environment, done, run_command, wait_for
from tests.pictures import write_many

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger()
    yield ledger
    ledger.close()


def backfill(folder: Path, ledger: Ledger, overwrite: str = "never") -> Backfill:
    return Backfill([folder], (CAPTION,), ledger, partial(making_of, ModelConfig(name="demo")), overwrite=overwrite)


def write_empty(folder: Path, count: int) -> list[Path]:
    """Files that are pictures by their names: nothing opens them here."""
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for path in paths:
        path.touch()
    return paths


def answer(image: Image) -> Future[Done]:
    future: Future[Done] = Future()
    future.set_result(done(asks_of(image.outputs)))
    return future


def test_only_a_window_of_the_pictures_is_under_way(tmp_path: Path, ledger: Ledger) -> None:
    write_empty(tmp_path, 2 * WINDOW)
    waiting: list[Future[Done]] = []

    def submit(image: Image) -> Future[Done]:
        waiting.append(Future())
        if len(waiting) == WINDOW:
            waiting[0].set_result(done(asks_of(image.outputs)))
        return waiting[-1]

    run = backfill(tmp_path, ledger).run(submit)
    next(run)
    assert len(waiting) == WINDOW
    run.close()


def test_pictures_for_which_no_server_answers_wait_and_are_tried_again(tmp_path: Path, ledger: Ledger) -> None:
    write_empty(tmp_path, 2 * WINDOW)
    said: list[str] = []
    slept: list[float] = []
    tried = 0

    def submit(image: Image) -> Future[Done]:
        nonlocal tried
        tried += 1
        if tried <= 10 or len(slept) >= 3:
            return answer(image)
        gone: Future[Done] = Future()
        gone.set_exception(CheckpointError("http://a: gone"))
        return gone

    outcomes = list(backfill(tmp_path, ledger).run(submit, outage=Outage(said.append, slept.append)))
    assert sorted(outcome.image.path for outcome in outcomes) == [str(path) for path in sorted(tmp_path.iterdir())]
    assert all(outcome.error is None for outcome in outcomes)
    assert said == ["http://a: gone; what is left waits until a server answers", "a server answers again"]
    assert len(slept) == 3
    assert tried <= 2 * WINDOW + 3 * WINDOW


def test_stop_does_not_wait_for_a_server(tmp_path: Path, ledger: Ledger) -> None:
    write_empty(tmp_path, 3)
    stopped: list[float] = []

    def submit(image: Image) -> Future[Done]:
        gone: Future[Done] = Future()
        gone.set_exception(CheckpointError("http://a: gone"))
        return gone

    work = backfill(tmp_path, ledger)
    assert list(work.run(submit, lambda: len(stopped) > 1, Outage(lambda text: None, stopped.append))) == []


def test_each_directory_is_read_when_its_turn_comes(tmp_path: Path, ledger: Ledger) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_empty(tmp_path / name, 3)
    images = backfill(tmp_path, ledger).images()
    first = list(itertools.islice(images, 3))
    (tmp_path / "b" / "late.jpg").touch()
    rest = list(images)
    assert [os.path.basename(image.path) for image, _ in first] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert [os.path.basename(image.path) for image, _ in rest] == ["0000.jpg", "0001.jpg", "0002.jpg", "late.jpg"]


def test_directory_of_many_pictures_that_are_named_each_is_read_once(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `backfill *.jpg` names them: reading it for each would take minutes for thousands."""
    paths = write_empty(tmp_path, 50)
    read: list[object] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: read.append(path) or listdir(path))
    work = Backfill(paths, (CAPTION,), ledger, partial(making_of, ModelConfig(name="demo")))
    assert [Path(image.path) for image, _ in work.images()] == paths
    assert read == [tmp_path]


def test_full_disk_ends_it(tmp_path: Path, ledger: Ledger) -> None:
    write_empty(tmp_path, 3)

    def submit(image: Image) -> Future[Done]:
        future: Future[Done] = Future()
        future.set_exception(DiskFull(f"{image.path}: cannot be written: No space left on device"))
        return future

    with pytest.raises(DiskFull, match="No space left on device"):
        list(backfill(tmp_path, ledger).run(submit))


def test_picture_that_brought_down_the_engine_is_not_tried_again_and_others_that_failed_are(
    tmp_path: Path, ledger: Ledger
) -> None:
    bomb, text = write_empty(tmp_path, 2)
    ledger.failed(str(bomb), "the engine process ended 3 times", stamp_of(str(bomb)), 3, error=SET_ASIDE)
    ledger.failed(str(text), "is not a picture", stamp_of(str(text)), error=PictureError.__name__)
    outcomes = {os.path.basename(outcome.image.path): outcome for outcome in backfill(tmp_path, ledger).run(answer)}
    assert outcomes[bomb.name].reason == "the engine process ended 3 times"
    assert outcomes[text.name].done is not None


def test_pictures_that_share_a_sidecar_are_reported_and_always_means_all(tmp_path: Path, ledger: Ledger) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "b.txt"):
        (tmp_path / name).touch()
    assert [os.path.basename(image.path) for image, _ in backfill(tmp_path, ledger).images()] == ["a.jpg", "a.png"]
    reasons = {os.path.basename(image.path): reason for image, reason in backfill(tmp_path, ledger, "always").images()}
    assert [name for name, reason in reasons.items() if reason is None] == ["a.jpg", "b.jpg"]
    assert "belongs to a.jpg" in str(reasons["a.png"])


def test_directory_that_cannot_be_listed_is_told_and_the_exit_code_says_so(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "a.txt"):
        (tmp_path / name).touch()
    secret, scandir = tmp_path / "secret", os.scandir
    secret.mkdir()

    def forbid(path: str) -> Iterator[os.DirEntry[str]]:
        if path == str(secret):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)  # whoever runs the tests may be root, whom no mode stops
    work = backfill(tmp_path, ledger)
    assert run_backfill(work, Config(), as_json=False) == 1
    assert capsys.readouterr().err == f"{secret}: cannot be looked into: Permission denied\n"
    monkeypatch.undo()
    assert run_backfill(work, Config(), as_json=False) == 0


def test_killed_backfill_is_taken_up_by_the_same_command(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = write_many(folder, 120)
    command = ["backfill", str(folder), "--model", "demo", "--prompt", "CAPTION", "--ext", "txt"]
    first = subprocess.Popen(
        [sys.executable, "-m", "florence_daemon", *command], env=clean_environment(tmp_path), stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(list(folder.glob("*.txt"))) >= 3, 180)
    first.send_signal(signal.SIGKILL)
    first.wait()
    left = len(pictures) - len(list(folder.glob("*.txt")))
    assert left > 0
    (folder / f"{PREFIX}0123456789ab-{first.pid}").touch()  # as if it had been killed in the middle of writing
    again = run_command(*command, home=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{left} of {left} images" in again.stderr
    assert len(list(folder.glob("*.txt"))) == len(pictures)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_backfill_on_a_full_disk_says_so_and_tears_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_many(tmp_path, 8)
    # A tmpfs with room for the eight pictures and three files more.
    script = """
        mount -t tmpfs -o nr_inodes=12 none "$1" && cp ./*.jpg "$1" && shift && "$@"
        code=$?; ls -A pictures; exit $code
    """
    command = [sys.executable, "-m", "florence_daemon", "backfill", str(folder), "--model", "demo"]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody have a mount of their own (unshare -Urm)")
    ended = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", str(folder), *command],
        capture_output=True,
        text=True,
        env=clean_environment(tmp_path),
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "No space left on device; free some space, then the same command takes up there" in ended.stderr
    assert not [name for name in ended.stdout.split() if name.startswith(".")]


def backfill_told(folder: Path, ledger: Ledger, *given: str, **told: Any) -> list[tuple[str, str, str]]:
    """What a backfill would write: picture, sidecar's ending, prefix; or the picture's reason against it."""
    output = OutputConfig(prompt="CAPTION", ext="txt", prefix=told.pop("prefix", ""))
    makes = partial(making_of, ModelConfig(name="demo"))
    work = Backfill([folder], (output,), ledger, makes, given=given, **told)
    return [
        (os.path.relpath(image.path, folder), each.ending, each.prefix if reason is None else str(reason))
        for image, reason in work.images()
        for each in image.outputs
    ]


def test_settings_of_a_directory_count_for_a_backfill_too(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "sub").mkdir()
    write_empty(tmp_path, 1)
    write_empty(tmp_path / "sub", 2)
    (tmp_path / "sub" / ".florence.yaml").write_text(
        "prefix: 'ohwx, '\nexclude: [0001*]\noutputs: [{prompt: OCR, ext: ocr}]\n"
    )
    assert backfill_told(tmp_path, ledger) == [("0000.jpg", ".txt", ""), ("sub/0000.jpg", ".ocr", "ohwx, ")]


def test_what_the_command_line_says_counts_more(tmp_path: Path, ledger: Ledger) -> None:
    write_empty(tmp_path, 1)
    (tmp_path / "0000.txt").write_text("mine")
    (tmp_path / ".florence.yaml").write_text("prefix: x\noverwrite: always\noutputs: [{prompt: OCR, ext: ocr}]\n")
    told = backfill_told(tmp_path, ledger, "outputs", "prefix", prefix="mine, ", overwrite="append")
    assert told == [("0000.jpg", ".txt", "mine, ")]
    assert backfill_told(tmp_path, ledger, "outputs", overwrite="never") == []
    (tmp_path / ".florence.yaml").write_text("outputs: [{prompt: OCR, ext: txt, overwrite: always}]\n")
    assert backfill_told(tmp_path, ledger, overwrite="never") == []
    assert backfill_told(tmp_path, ledger) == [("0000.jpg", ".txt", "")]


def test_pictures_below_wrong_settings_are_listed_with_the_reason(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "sub").mkdir()
    write_empty(tmp_path, 1)
    write_empty(tmp_path / "sub", 1)
    (tmp_path / "sub" / ".florence.yaml").write_text("prefixx: x\n")
    good, bad = backfill_told(tmp_path, ledger)
    assert good == ("0000.jpg", ".txt", "")
    assert bad[0] == "sub/0000.jpg"
    assert "sub/.florence.yaml:1: prefixx: unknown setting" in bad[2]


def test_settings_above_a_path_count_as_far_up_as_the_folder_is_watched(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "sub").mkdir()
    write_empty(tmp_path / "sub", 1)
    (tmp_path / ".florence.yaml").write_text("prefix: 'ohwx, '\n")
    assert backfill_told(tmp_path / "sub", ledger) == [("0000.jpg", ".txt", "")]
    watched = [FolderConfig(path=tmp_path)]
    assert backfill_told(tmp_path / "sub", ledger, watched=watched) == [("0000.jpg", ".txt", "ohwx, ")]
    assert backfill_told(tmp_path / "sub", ledger, watched=[FolderConfig(path=tmp_path, inherit=False)]) == [
        ("0000.jpg", ".txt", "")
    ]
