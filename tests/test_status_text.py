"""What a person sees of a status, of `ps`, and at the start."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from florence_daemon.banner import banner_lines
from florence_daemon.config import Config, FolderConfig, ModelConfig, ServerConfig, StateConfig
from florence_daemon.status_text import ps_lines, say_size, say_time, status_lines
from tests.conftest import clean_environment, wait_for

UNLOADED = {
    "name": "demo",
    "state": "unloaded",
    "device": None,
    "resident_mb": None,
    "unloads_in_s": None,
    "error": None,
    "idle_unload_s": 300.0,
}
LOADED = UNLOADED | {"state": "loaded", "device": "cuda:0", "resident_mb": 1900, "unloads_in_s": 290.2}


def status(**model: Any) -> dict[str, Any]:
    return {
        "uptime_s": 11_520,
        "model": UNLOADED | model,
        "queue": {"http": 0, "folder": 3, "backfill": 0, "running": 1, "settling": 2, "captioned": 1204, "failed": 1},
        "folders": [
            {
                "path": "/p",
                "health": "ok",
                "reason": "",
                "watching": "told of changes",
                "scanning": True,
                "settling": 0,
            },
            {"path": "/mnt/写真", "health": "degraded", "reason": "does not answer", "watching": "scanned every 10 s"},
        ],
        "failures": [
            {"path": "/p/a.jpg", "reason": "is truncated", "attempts": 3, "next_try_in_s": 4.2},
            {"path": "/p/b.jpg", "reason": "is not a picture", "attempts": 1, "next_try_in_s": None},
        ],
    }


def shown(**model: Any) -> list[str]:
    return [line.plain for line in status_lines(status(**model))]


def test_status_is_readable() -> None:
    assert shown() == [
        "model     demo  unloaded, loads with the next picture",
        "queue     3 waiting (3 folder), 1 running, 2 settling",
        "done      1,204 captioned, 1 failed, in 3 h 12 min",
        "folders   /p         ok        told of changes; scanning now",
        "          /mnt/写真  degraded  does not answer",
        "failures  /p/a.jpg: is truncated (3 tries, the next in 4 s)",
        "          /p/b.jpg: is not a picture",
    ]


def test_status_of_the_model_says_where_it_runs_what_it_holds_and_when_it_goes() -> None:
    assert shown(**LOADED)[0] == "model     demo  loaded on cuda:0, 1.9 GB, unloads in 4 min 50 s"
    assert (
        shown(**LOADED, gpu_mb=800)[0] == "model     demo  loaded on cuda:0, 1.9 GB, 800 MB GPU, unloads in 4 min 50 s"
    )
    works = LOADED | {"unloads_in_s": None}
    assert shown(**works)[0] == "model     demo  loaded on cuda:0, 1.9 GB"
    assert shown(**works | {"keep_alive_s": -1})[0] == "model     demo  loaded on cuda:0, 1.9 GB, stays loaded"


def test_status_of_a_model_that_does_not_load_says_why() -> None:
    failed = shown(state="failed", error="no such model", refuses_for_s=12.0)[0]
    assert failed == "model     demo  failed: no such model (tried again with the first picture in 12 s)"
    assert shown(state="restarting", error="killed by signal 9")[0] == "model     demo  restarting: killed by signal 9"
    assert shown(state="loading")[0] == "model     demo  loading"


def test_status_says_what_is_wrong_with_the_configuration() -> None:
    found = status() | {"configuration": {"file": "c.yaml", "error": "c.yaml:2: no", "needs_restart": ["server.port"]}}
    lines = [line.plain for line in status_lines(found)]
    assert lines[3:5] == [
        "config    c.yaml:2: no",
        "          server.port: changed, and in force after a restart",
    ]


def test_states_are_told_by_their_colours() -> None:
    lines = status_lines(status(**LOADED))
    styles = {line.plain[span.start : span.end].strip(): span.style for line in lines for span in line.spans}
    assert (styles["loaded"], styles["ok"], styles["degraded"]) == ("green", "green", "yellow")
    assert (styles["1 failed"], styles["is truncated"]) == ("bold red", "red")


def test_ps_is_a_table() -> None:
    assert [line.plain for line in ps_lines(status(**LOADED, gpu_mb=800))] == [
        "NAME  STATE   DEVICE  SIZE                 UNTIL",
        "demo  loaded  cuda:0  1.9 GB + 800 MB GPU  4 min 50 s from now",
    ]
    assert ps_lines(status())[1].plain.split() == ["demo", "unloaded", "-", "-", "-"]
    assert ps_lines(status(**LOADED | {"unloads_in_s": None}))[1].plain.endswith("working")
    assert ps_lines(status(**LOADED | {"unloads_in_s": None, "keep_alive_s": -1}))[1].plain.endswith("for ever")


def test_each_engine_has_a_line_where_there_are_several() -> None:
    one = {"name": "cuda:0", "state": "loaded", "running": 12, "answered": 3400, "error": None, "retries_in_s": None}
    one |= {"resident_mb": 1900, "gpu_mb": 800}
    other = one | {
        "name": "cuda:1",
        "state": "failed",
        "running": 0,
        "answered": 0,
        "resident_mb": None,
        "gpu_mb": None,
    }
    other |= {"error": "The device 'cuda:1' is not available", "retries_in_s": 26.4}
    assert shown(engines=[one]) == shown()
    assert shown(engines=[one, other])[1:3] == [
        "engines   cuda:0  loaded  12 running, 3,400 answered, 1.9 GB, 800 MB GPU",
        "          cuda:1  failed  The device 'cuda:1' is not available (tried again in 26 s)",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (59.6, "1 min"), (290, "4 min 50 s"), (3600, "1 h"), (11_520, "3 h 12 min"), (187_200, "2 d 4 h")],
)
def test_times_are_said_as_a_person_would(seconds: float, said: str) -> None:
    assert say_time(seconds) == said


def test_sizes_are_said_as_a_person_would() -> None:
    assert (say_size(382.4), say_size(1900)) == ("382 MB", "1.9 GB")


def test_banner_says_what_runs_where_and_what_is_written(tmp_path: Path) -> None:
    config = Config(
        model=ModelConfig(name="demo"),
        folders=(FolderConfig(path=tmp_path), FolderConfig(path=tmp_path / "later")),
        state=StateConfig(dir=tmp_path / "state"),
    )
    lines = [line.plain for line in banner_lines(config, "http://127.0.0.1:1234", tmp_path / "c.yaml")]
    assert lines[1:] == [
        "model     demo, loads with the first picture, goes after 5 min without work",
        "address   http://127.0.0.1:1234 for programs, and the page; this machine alone, no token asked for",
        f"folders   {tmp_path}: MORE_DETAILED_CAPTION to .txt, GENERATE_TAGS to .tag",
        f"          {tmp_path / 'later'}: MORE_DETAILED_CAPTION to .txt, GENERATE_TAGS to .tag (not there yet)",
        f"config    {tmp_path / 'c.yaml'}, read again when it changes",
        f"ledger    {tmp_path / 'state' / 'ledger.sqlite3'}",
        "",
    ]


def test_banner_of_an_open_server_says_so_and_tells_no_token() -> None:
    config = Config(server=ServerConfig(host="0.0.0.0", token="s3cret"), model=ModelConfig(idle_unload_s=-1))
    text = "\n".join(line.plain for line in banner_lines(config, "http://0.0.0.0:54880", None))
    assert "the network, with the token" in text
    assert "s3cret" not in text
    assert "stays" in text
    assert "--watch DIR" in text


def test_run_greets_a_person_at_a_terminal(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "florence_daemon", "run", "--model", "demo", "--port", "0", "--watch", str(tmp_path)],
        env=clean_environment(tmp_path) | {"TERM": "xterm-256color"},
        stderr=end,
    ) as daemon:
        os.close(end)
        said = b""

        def has_started() -> bool:
            nonlocal said
            said += os.read(terminal, 65536)
            return b"answers at" in said

        try:
            wait_for(has_started, 60)
        finally:
            daemon.terminate()
            daemon.wait(60)
            os.close(terminal)
    assert b"\x1b[1mFlorence Daemon\x1b[0m" in said
    assert f"{tmp_path}: MORE_DETAILED_CAPTION to .txt".encode() in said
