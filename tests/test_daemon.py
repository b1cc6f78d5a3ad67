"""The whole road, as a user goes it: the real command, real folders, the real server, the demo model."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningDaemon, clean_environment, run_command, wait_for
from tests.pictures import CAPTION, DETAILED, TAGS, jpeg, rotated_jpeg, write_many, write_transparent_png

StartDaemon = Callable[..., RunningDaemon]


def process_image(daemon: RunningDaemon, picture: bytes, prompt: str = "<CAPTION>") -> httpx.Response:
    body = {"image": base64.b64encode(picture).decode(), "prompt": prompt}
    return httpx.post(f"{daemon.url}/process_image", json=body, timeout=120)


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def watching(folder: Path, **model: Any) -> str:
    settings = "".join(f", {name}: {value}" for name, value in model.items())
    return f"model: {{name: demo{settings}}}\nfolders: [{{path: {folder}, settle_s: 0.3}}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def test_dropped_pictures_get_their_captions_and_the_broken_one_its_reason(
    start_daemon: StartDaemon, folder: Path
) -> None:
    daemon = start_daemon("--watch", str(folder))
    (folder / "plain.jpg").write_bytes(jpeg())
    (folder / "rotated.jpg").write_bytes(rotated_jpeg())
    write_transparent_png(folder / "transparent.png")
    (folder / "broken.jpg").write_bytes(jpeg()[:3000])
    wait_for(lambda: len(list(folder.glob("*.t*"))) >= 6 and daemon.get("/status")["failures"], 90)
    for name in ("plain", "rotated", "transparent"):
        assert (folder / f"{name}.txt").read_text() == DETAILED + "\n", name
        assert (folder / f"{name}.tag").read_text() == TAGS + "\n", name
    (failure,) = daemon.get("/status")["failures"]
    assert failure["path"] == str(folder / "broken.jpg")
    assert "truncated" in failure["reason"]
    assert not list(folder.glob("broken.t*"))
    wait_for(lambda: len(os.listdir(folder)) == 4 + 6, what="nothing but pictures and sidecars")
    shown = run_command("status", "--server", daemon.url, home=folder.parent)
    assert f"failures  {folder / 'broken.jpg'}: is truncated" in shown.stdout


def test_pictures_already_there_are_captioned_and_sidecars_already_there_stay(
    start_daemon: StartDaemon, folder: Path
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "old.jpg").write_bytes(jpeg())
    (folder / "mine.jpg").write_bytes(jpeg())
    (folder / "mine.txt").write_text("what I wrote")
    daemon = start_daemon(config=watching(folder))
    wait_for(lambda: len(list(folder.rglob("*.t*"))) == 4, 90)
    wait_for(lambda: daemon.get("/status")["queue"]["captioned"] == 2)
    assert (folder / "mine.txt").read_text() == "what I wrote"
    assert (folder / "mine.tag").read_text() == TAGS + "\n"
    assert (folder / "sub" / "old.txt").read_text() == DETAILED + "\n"


def test_clients_of_the_original_server_work_unchanged(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    assert daemon.get("/model") == "demo"
    assert daemon.get("/prompts")[0] == "<GENERATE_TAGS>"
    assert process_image(daemon, jpeg()).json() == {"result": CAPTION}
    assert process_image(daemon, rotated_jpeg(), "caption").json() == {"result": CAPTION}
    boxes = process_image(daemon, jpeg(), "<OD>").json()["result"]
    assert boxes["labels"] == ["red circle", "blue square"]
    assert boxes["bboxes"][0] == pytest.approx([60, 150, 250, 340], abs=20)
    refused = process_image(daemon, b"not a picture")
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("Invalid image data: the picture is not a picture that can be read")


def test_person_who_waits_is_answered_ahead_of_a_backfill(start_daemon: StartDaemon, folder: Path) -> None:
    daemon = start_daemon()
    pictures = write_many(folder, 400)
    with subprocess.Popen(
        [sys.executable, "-m", "florence_daemon", "backfill", str(folder), "--server", daemon.url],
        env=clean_environment(folder.parent),
    ) as backfill:
        wait_for(lambda: len(list(folder.glob("*.txt"))) >= 2, 180)
        assert daemon.get("/model") == "demo"
        assert process_image(daemon, jpeg()).json() == {"result": CAPTION}
        written = len(list(folder.glob("*.txt")))
        backfill.kill()
    assert written < len(pictures) - 10, "the answer came only when the backfill was nearly over"
    assert {path.read_text() for path in folder.glob("*.txt")} == {DETAILED + "\n"}


def test_idle_model_is_unloaded_and_comes_back(start_daemon: StartDaemon, folder: Path) -> None:
    daemon = start_daemon(config=watching(folder, idle_unload_s=1))
    # Asked until it is seen at work: on a busy machine the second may be over before the status is asked.
    pid = wait_for(lambda: process_image(daemon, jpeg()).status_code == 200 and daemon.engine_pid())
    wait_for(lambda: is_gone(pid), 180, "the engine process to end")
    assert daemon.get("/status")["model"]["state"] == "unloaded"
    assert resident_mb(daemon.process.pid) <= 90
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text()
    assert children.split() == []
    assert process_image(daemon, jpeg()).json() == {"result": CAPTION}


def test_killed_engine_costs_a_delay_only(start_daemon: StartDaemon, folder: Path) -> None:
    daemon = start_daemon(config=watching(folder))
    pictures = write_many(folder, 80)
    wait_for(lambda: len(list(folder.glob("*.txt"))) >= 3, 180)
    pid = daemon.engine_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(list(folder.glob("*.t*"))) == 2 * len(pictures), 300)
    assert daemon.engine_pid() != pid
    assert daemon.get("/status")["failures"] == []
    assert {path.with_suffix(".txt").read_text() for path in pictures} == {DETAILED + "\n"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_finishes_what_runs_and_exits_0(start_daemon: StartDaemon, folder: Path, number: int) -> None:
    daemon = start_daemon(config=watching(folder))
    pictures = write_many(folder, 100)
    wait_for(lambda: len(list(folder.glob("*.txt"))) >= 2, 180)
    pid = daemon.engine_pid()
    assert pid is not None
    assert daemon.stop(number) == 0
    assert is_gone(pid)
    done = {path.stem for path in folder.glob("*.txt")}
    assert len(done) < len(pictures)
    assert done == {path.stem for path in folder.glob("*.tag")}
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    again = start_daemon(config=watching(folder))
    wait_for(lambda: len(list(folder.glob("*.t*"))) == 2 * len(pictures), 300)
    wait_for(lambda: again.get("/status")["queue"]["captioned"] == len(pictures) - len(done), what="all to be counted")


def test_copy_that_takes_a_while_is_captioned_once_and_whole(start_daemon: StartDaemon, folder: Path) -> None:
    daemon = start_daemon(config=watching(folder))
    content = jpeg()
    with (folder / "slow.jpg").open("wb") as file:
        for start in range(0, len(content), 1 + len(content) // 8):
            file.write(content[start : start + 1 + len(content) // 8])
            file.flush()
            time.sleep(0.15)
    wait_for((folder / "slow.tag").exists, 180)
    assert (folder / "slow.txt").read_text() == DETAILED + "\n"
    wait_for(lambda: daemon.get("/status")["failures"] == [], what="no failure to be listed")


def test_picture_that_is_replaced_by_a_whole_one_leaves_the_list(start_daemon: StartDaemon, folder: Path) -> None:
    daemon = start_daemon(config=watching(folder))
    (folder / "a.jpg").write_bytes(jpeg()[:2000])
    wait_for(lambda: daemon.get("/status")["failures"], 180)
    shutil.copy(_file(folder.parent / "whole.jpg"), folder / "a.jpg")
    wait_for((folder / "a.txt").exists, 180)
    wait_for(lambda: daemon.get("/status")["failures"] == [])


def _file(path: Path) -> Path:
    path.write_bytes(jpeg())
    return path


def test_model_that_is_not_there_is_said_and_the_pictures_wait(start_daemon: StartDaemon, folder: Path) -> None:
    (folder / "a.jpg").write_bytes(jpeg())
    daemon = start_daemon(config=watching(folder).replace("name: demo", "name: nobody/nothing, offline: true"))
    status = wait_for(lambda: (s := daemon.get("/status"))["model"]["state"] == "failed" and s, 180)
    assert "nobody/nothing" in status["model"]["error"]
    assert status["failures"] == []
    wait_for(lambda: daemon.get("/status")["queue"]["folder"] == 1, 180, "the picture to wait again")
    answer = process_image(daemon, jpeg())
    assert answer.status_code == 503
    assert "nobody/nothing" in answer.json()["detail"]


def test_folder_that_is_missing_at_start_is_looked_for(start_daemon: StartDaemon, folder: Path) -> None:
    daemon = start_daemon("--watch", str(folder / "later"))
    wait_for(lambda: daemon.get("/status")["folders"][0]["health"] == "failed")


def test_stop_that_is_held_up_for_ever_is_cut_short() -> None:
    script = (
        "import threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from florence_daemon.daemon import leave_within\n"
        "ThreadPoolExecutor(1).submit(threading.Event().wait)  # writes to a share that hangs\n"
        "leave_within(0.3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "the stop took longer than 0.3 s and is cut short" in ended.stderr
