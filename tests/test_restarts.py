"""What the ledger is for, as a user sees it: kills, restarts and changed settings, with the demo model."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Figure, RunningDaemon, run_command, wait_for
from tests.pictures import DETAILED, TAGS, jpeg, write_many

StartDaemon = Callable[..., RunningDaemon]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def watching(folder: Path, **settings: object) -> str:
    more = "".join(f", {name}: {value}" for name, value in settings.items())
    state = folder.parent / "kept-state"
    return f"model: {{name: demo}}\nstate: {{dir: {state}}}\nfolders: [{{path: {folder}, settle_s: 0.1{more}}}]\n"


def test_killed_again_and_again_it_loses_nothing_and_then_does_nothing_twice(
    start_daemon: StartDaemon, folder: Path, figure: Figure
) -> None:
    pictures = write_many(folder, 60)
    chance = random.Random(4)
    for _ in range(10):
        daemon = start_daemon(config=watching(folder))
        time.sleep(chance.uniform(0.0, 3.5))
        daemon.stop(signal.SIGKILL)
        texts = {path.read_text() for path in folder.glob("*.t*")}
        assert texts <= {DETAILED + "\n", TAGS + "\n"}, "torn"
    daemon = start_daemon(config=watching(folder))
    wait_for(lambda: len(list(folder.glob("*.t*"))) == 2 * len(pictures), 300, "what the kills left undone")
    wait_for(lambda: daemon.get("/status")["failures"] == [], what="no failure to be listed")
    wait_for(lambda: not [name for name in os.listdir(folder) if name.startswith(".")], 180, "leftovers to be removed")
    assert daemon.stop() == 0
    again = start_daemon(config=watching(folder))
    (folder / "last.jpg").write_bytes(jpeg())
    wait_for((folder / "last.tag").exists, 180)
    wait_for(lambda: again.get("/status")["queue"]["captioned"] == 1, 180, "nothing but the new one was captioned")
    figure(f"10 SIGKILLs over {len(pictures)} pictures, with the demo model: 0 lost, 0 torn; a restart did 0 again")


def test_failures_outlive_a_restart_and_the_truncated_picture_is_tried_again(
    start_daemon: StartDaemon, folder: Path
) -> None:
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "short.jpg").write_bytes(jpeg()[:2000])
    daemon = start_daemon(config=watching(folder))
    failed = wait_for(lambda: two_failures(daemon), 180)
    assert [Path(failure["path"]).name for failure in failed] == ["short.jpg", "text.jpg"]
    assert [failure["attempts"] for failure in failed[1:]] == [1]
    assert failed[0]["next_try_in_s"] is not None
    assert failed[1]["next_try_in_s"] is None
    assert daemon.stop() == 0
    daemon = start_daemon(config=watching(folder))
    again = daemon.get("/status")["failures"]
    assert [failure["path"] for failure in again] == [failure["path"] for failure in failed]
    assert again[0]["attempts"] >= failed[0]["attempts"]
    (folder / "short.jpg").write_bytes(jpeg())
    (folder / "text.jpg").unlink()
    wait_for((folder / "short.txt").exists, 180)
    wait_for(lambda: daemon.get("/status")["failures"] == [], 180)


def two_failures(daemon: RunningDaemon) -> list[dict[str, Any]] | None:
    """Those of /status once there are two, and the first was tried again."""
    failures: list[dict[str, Any]] = daemon.get("/status")["failures"]
    return failures if len(failures) == 2 and failures[0]["attempts"] >= 2 else None


def test_damaged_ledger_is_set_aside_and_nothing_is_done_twice(
    start_daemon: StartDaemon, folder: Path, figure: Figure
) -> None:
    (folder / "a.jpg").write_bytes(jpeg())
    daemon = start_daemon(config=watching(folder))
    wait_for((folder / "a.tag").exists, 180)
    assert daemon.stop() == 0
    state = folder.parent / "kept-state"
    (state / "ledger.sqlite3").write_bytes(b"not a ledger any more" * 1000)
    daemon = start_daemon(config=watching(folder))
    (folder / "b.jpg").write_bytes(jpeg())
    wait_for((folder / "b.tag").exists, 180)
    wait_for(lambda: daemon.get("/status")["queue"]["captioned"] == 1, what="the one that is new to be counted")
    assert "is set aside as" in daemon.text()
    assert [path.name for path in state.iterdir() if ".damaged-" in path.name]
    figure("damaged: set aside, 0 done twice, the next picture captioned")


def test_state_directory_that_cannot_be_written_does_not_stop_the_daemon(
    start_daemon: StartDaemon, folder: Path, figure: Figure
) -> None:
    (folder.parent / "kept-state").write_text("a file where the directory should be")
    (folder / "a.jpg").write_bytes(jpeg())
    daemon = start_daemon(config=watching(folder))
    wait_for((folder / "a.tag").exists, 180)
    assert "it is kept in memory" in daemon.text()
    figure("cannot be written: kept in memory, the picture captioned")


def test_backfill_writes_anew_what_is_stale_and_leaves_what_a_person_wrote(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backfill(*arguments: str) -> str:
        done = run_command("backfill", str(folder), "--model", "demo", *arguments, home=folder.parent)
        assert done.returncode == 0, done.stderr
        return done.stderr

    for name in ("same", "edited"):
        (folder / f"{name}.jpg").write_bytes(jpeg())
    (folder / "theirs.jpg").write_bytes(jpeg())
    (folder / "theirs.txt").write_text("by hand")
    caption = ("--prompt", "CAPTION", "--ext", "txt")
    assert "2 of 2 images" in backfill(*caption)
    (folder / "edited.txt").write_text("edited by hand")
    assert "nothing to do" in backfill(*caption, "--overwrite", "stale")
    detailed = ("--prompt", "MORE_DETAILED_CAPTION", "--ext", "txt", "--overwrite", "stale")
    assert "1 of 1 images" in backfill(*detailed)
    assert (folder / "same.txt").read_text() == DETAILED + "\n"
    assert (folder / "edited.txt").read_text() == "edited by hand"
    assert (folder / "theirs.txt").read_text() == "by hand"
    assert "nothing to do" in backfill(*detailed)
    assert "3 of 3 images" in backfill(*detailed[:-1], "always")
    assert (folder / "theirs.txt").read_text() == DETAILED + "\n"
