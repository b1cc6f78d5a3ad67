"""A daemon without a model watches a folder, and others answer for it: all is captioned, whichever of them dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from florence_daemon.demo_pictures import encode_picture
from tests.conftest import Figure, RunningDaemon, clean_environment, run_command, wait_for
from tests.pictures import CAPTION as TEXT
from tests.pictures import PICTURE, jpeg, rotated_jpeg, write_many

# Enough that a server that is killed once some are captioned is killed at work.
COUNT = 150
Start = Callable[..., RunningDaemon]
CAPTION = "[{prompt: CAPTION, ext: txt}]"
OUTPUTS = "[{prompt: CAPTION, ext: txt}, {prompts: [OD, DENSE_REGION_CAPTION], ext: json}]"


def watching(folder: Path, *servers: str, more: str = "", outputs: str = CAPTION) -> str:
    return f"""
model: {{server: [{", ".join(servers)}]{more}}}
folders: [{{path: {folder}, settle_s: 0.2, outputs: {outputs}}}]
"""


def start_again(daemon: RunningDaemon, start: Start) -> RunningDaemon:
    """Another daemon at the same address."""
    port = daemon.url.rpartition(":")[2]
    return start("--model", "demo", "--port", port)


def captioned(folder: Path) -> int:
    return len(list(folder.glob("*.txt"))) if all_whole(folder) else 0


def all_whole(folder: Path) -> bool:
    return all(path.read_text() for path in folder.glob("*.txt"))


def readiness(daemon: RunningDaemon) -> Any:
    import httpx

    return httpx.get(f"{daemon.url}/health/ready", timeout=60).json()


def test_original_resized_and_local_give_the_same_sidecars(start_daemon: Start, tmp_path: Path) -> None:
    pictures = {
        "a.jpg": jpeg(),
        "turned.jpg": rotated_jpeg(),
        "large.jpg": encode_picture(PICTURE.image.resize((3200, 2400)), "JPEG"),
        "odd.png": encode_picture(PICTURE.image.resize((333, 777)), "PNG"),
    }
    folders = {name: tmp_path / name for name in ("local", "original", "resized")}
    for folder in folders.values():
        folder.mkdir()
        for name, content in pictures.items():
            (folder / name).write_bytes(content)
    here = f"model: {{name: demo}}\nfolders: [{{path: {folders['local']}, settle_s: 0.2, outputs: {OUTPUTS}}}]\n"
    server = start_daemon(config=here)
    start_daemon(config=watching(folders["original"], server.url, outputs=OUTPUTS))
    start_daemon(config=watching(folders["resized"], server.url, more=", send: resized", outputs=OUTPUTS))
    for folder in folders.values():
        wait_for(lambda folder=folder: len(list(folder.glob("*.json"))) == len(pictures), 180)
    for folder in folders.values():
        for name in pictures:
            for ending in ("txt", "json"):
                stem = Path(name).stem
                wanted = (folders["local"] / f"{stem}.{ending}").read_bytes()
                assert (folder / f"{stem}.{ending}").read_bytes() == wanted, (folder, stem)
    told = json.loads((folders["resized"] / "odd.json").read_text())
    assert (told["width"], told["height"]) == (333, 777)


def test_folder_is_captioned_whole_when_a_server_dies_and_waits_when_none_is_left(
    start_daemon: Start, tmp_path: Path, figure: Figure
) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    one, two = start_daemon(), start_daemon()
    nas = start_daemon(config=watching(folder, one.url, two.url))
    write_many(folder, COUNT)
    wait_for(lambda: captioned(folder) > 10, 180)
    one.stop(signal.SIGKILL)
    wait_for(lambda: captioned(folder) == COUNT, 180, "one server to do all")
    status = nas.get("/status")
    assert status["failures"] == []
    assert status["queue"]["failed"] == 0
    assert status["model"]["name"] == "demo"
    assert nas.get("/model") == "demo"
    wait_for(lambda: one.url in str(readiness(nas)), what="health to name the server that is gone")
    assert readiness(nas)["status"] == "degraded"

    two.stop(signal.SIGKILL)
    for number in range(10):
        (folder / f"late-{number}.jpg").write_bytes(jpeg())
    told = wait_for(lambda: said(nas, one.url, two.url), what="health to name both")
    assert told["status"] in ("degraded", "failed")
    assert captioned(folder) == COUNT
    assert nas.get("/status")["failures"] == []
    start_again(two, start_daemon)
    wait_for(lambda: captioned(folder) == COUNT + 10, 180, "the server that is back to do the rest")
    assert nas.get("/status")["queue"]["failed"] == 0
    assert "Traceback" not in nas.text()
    figure(
        f"one of two servers killed: {COUNT} of {COUNT} captioned; none left: 10 waited, captioned when one was back"
    )


def said(daemon: RunningDaemon, *urls: str) -> Any:
    answer = readiness(daemon)
    return answer if all(url in str(answer["reasons"]) for url in urls) else None


def test_servers_with_different_models_do_not_answer_side_by_side(start_daemon: Start, tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    one, other = start_daemon(), start_daemon(config="model: {name: demo, fast_decode: true}\n")
    nas = start_daemon(config=watching(folder, one.url, other.url))
    write_many(folder, 100)
    wait_for(lambda: captioned(folder) == 100, 180)
    reasons = wait_for(lambda: readiness(nas)["reasons"], what="health to tell the difference")
    assert "its model.fast_decode is" in str(reasons)


def test_wrong_token_is_told_and_the_right_one_is_not_shown(start_daemon: Start, tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    write_many(folder, 1)
    server = start_daemon(config="model: {name: demo}\nserver: {token: right-horse}\n")
    nas = start_daemon(config=watching(folder, server.url, more=", server_token: wrong-horse"))
    wait_for(lambda: said(nas, "model.server_token"), what="health to name the setting")
    config = nas.log.parent / "florence-daemon.yaml"
    config.write_text(config.read_text().replace("wrong-horse", "right-horse"))
    wait_for(lambda: captioned(folder) == 1, 180)
    for shown in (nas.text(), server.text(), json.dumps(nas.get("/status"))):
        assert "horse" not in shown


def test_daemons_that_name_each_other_are_told_that_neither_has_a_model(start_daemon: Start, tmp_path: Path) -> None:
    first = start_daemon(config="model: {server: http://127.0.0.1:9}\n")
    second = start_daemon(config=f"model: {{server: {first.url}}}\n")
    reason = wait_for(lambda: said(second, "has no model of its own"), what="the reason")
    assert reason["status"] in ("degraded", "failed")


def test_backfill_shares_out_and_goes_on_when_a_server_is_killed(
    start_daemon: Start, tmp_path: Path, figure: Figure
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_many(folder, COUNT)
    (folder / "broken.jpg").write_bytes(jpeg()[:2000])
    one, two = start_daemon(), start_daemon()
    work = ["backfill", str(folder), "--server", one.url, "--server", two.url, "--prompt", "CAPTION", "--ext", "txt"]
    process = subprocess.Popen(
        [sys.executable, "-m", "florence_daemon", *work],
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(tmp_path),
    )
    wait_for(lambda: captioned(folder) > 10 or process.poll() is not None, 180)
    one.stop(signal.SIGKILL)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 1, said  # for the broken one
    assert f"{folder}/broken.jpg: is truncated (JPEG)" in said
    assert captioned(folder) == COUNT
    assert all(each.get("/status")["queue"]["running"] == 0 for each in (two,))
    figure(f"backfill, one of two servers killed: {COUNT} of {COUNT} captioned, the broken one listed")


def test_backfill_waits_while_no_server_answers(start_daemon: Start, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_many(folder, COUNT)
    server = start_daemon()
    work = ["backfill", str(folder), "--server", server.url, "--prompt", "CAPTION", "--ext", "txt"]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2> said', "sh", sys.executable, "-m", "florence_daemon", *work],
        env=clean_environment(tmp_path),
        cwd=tmp_path,
    )
    wait_for(lambda: captioned(folder) > 10 or process.poll() is not None, 180)
    server.stop(signal.SIGKILL)
    wait_for(lambda: "waits until a server answers" in (tmp_path / "said").read_text(), 60)
    assert captioned(folder) < COUNT
    start_again(server, start_daemon)
    assert process.wait(180) == 0
    assert captioned(folder) == COUNT
    assert "a server answers again" in (tmp_path / "said").read_text()


def test_commands_ask_the_servers_of_the_configuration(start_daemon: Start, tmp_path: Path) -> None:
    [picture] = write_many(tmp_path, 1)
    server = start_daemon()
    config = tmp_path / "florence-daemon.yaml"
    config.write_text(f"model: {{server: [http://127.0.0.1:9, {server.url}]}}\n")
    said = run_command("caption", str(picture), "--prompt", "CAPTION", "--config", str(config), home=tmp_path)
    assert said.stdout == f"{TEXT}\n", said.stderr
    done = run_command("backfill", str(tmp_path), "--config", str(config), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert picture.with_suffix(".txt").exists()
    assert server.get("/status")["model"]["state"] == "loaded"


def test_backfill_that_no_server_answers_says_so_at_once(tmp_path: Path) -> None:
    write_many(tmp_path, 1)
    servers = ("--server", "http://127.0.0.1:9", "--server", "http://127.0.0.1:10")
    result = run_command("backfill", str(tmp_path), *servers, home=tmp_path)
    assert result.returncode == 1
    assert "http://127.0.0.1:9: no Florence Daemon answers there" in result.stderr
    assert "http://127.0.0.1:10: no Florence Daemon answers there" in result.stderr


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("server: ftp://gpu-box", "'ftp://gpu-box' is not a server's address; give one as http://gpu-box:54880"),
        ("server: [gpu-box]", "'gpu-box' is not a server's address"),
        ("server: http://ada:horse@gpu-box", "give model.server_token instead"),
        ("server: [http://a:1, http://a:1/]", "names a server twice"),
        ("server: http://localhost:54880", "is this daemon itself"),
        ("server: 7", "7 is not a list"),
        ("server_token: 'a horse'", "holds what a header cannot carry"),
        ("server_token: 12345", "is not text; put it between quotes"),
        ("send: small", "give one of original, resized"),
    ],
)
def test_wrong_setting_is_told_with_its_line(tmp_path: Path, setting: str, told: str) -> None:
    config = tmp_path / "florence-daemon.yaml"
    config.write_text(f"model:\n  {setting}\n")
    result = run_command("check-config", str(config), home=tmp_path)
    assert result.returncode == 78
    assert told in result.stderr
    assert "horse" not in result.stderr
    assert "12345" not in result.stderr


def test_commands_know_that_the_model_is_elsewhere(tmp_path: Path) -> None:
    config = tmp_path / "florence-daemon.yaml"
    config.write_text("model: {server: 'http://a:1, http://b:2', server_token: horse}\n")
    shown = run_command("check-config", str(config), home=tmp_path).stdout
    assert "model http://a:1, http://b:2, HTTP at" in shown
    assert "horse" not in shown
    pulled = run_command("pull", "--config", str(config), home=tmp_path)
    assert pulled.returncode == 0
    assert "nothing to download: http://a:1, http://b:2 has the model" in pulled.stdout
    refused = run_command("bench", "--config", str(config), str(tmp_path), home=tmp_path)
    assert refused.returncode == 2
    assert "model.server names http://a:1, http://b:2: give --model" in refused.stderr
