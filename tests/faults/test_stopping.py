"""Stopping and starting: nothing is lost, nothing is begun anew, and no engine process stays behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import count_sidecars, is_captioned_rightly, jpeg, write_jpegs
from benchmarks.faults.process import DaemonProcess, state_of, wait_for, watching
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon

IMAGE = {"Content-Type": "image/jpeg"}


def ask(daemon: DaemonProcess, number: int) -> httpx.Response:
    return httpx.post(f"{daemon.url}/process_image?prompt=CAPTION", content=jpeg(number), headers=IMAGE, timeout=60)


def counts(daemon: DaemonProcess, *names: str) -> list[int]:
    """How many jobs there are of these kinds, all at one moment."""
    queue = daemon.status()["queue"]
    return [queue[name] for name in names]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_in_a_backlog_finishes_what_runs_and_the_next_start_takes_up_the_rest(
    start: StartDaemon, folder: Path, figure: Figure, number: int
) -> None:
    pictures = write_jpegs(folder, range(400))
    daemon = start(FakeSettings(slow_s=0.02))
    wait_for(lambda: count_sidecars(folder) >= 20, 60, "the first captions")
    began_s = time.monotonic()
    assert daemon.stop(number) == 0
    stopped_s = time.monotonic() - began_s
    done = count_sidecars(folder)
    assert done < 400
    assert len(daemon.inferred()) == len(daemon.inferred("begun")) == done
    assert all(is_captioned_rightly(path) for path in pictures if path.with_suffix(".txt").exists())
    again = start(FakeSettings())
    wait_for(lambda: count_sidecars(folder) == 400, 60, "the rest")
    assert again.stop() == 0
    assert len(again.inferred()) == 400, "each picture exactly once"
    figure(
        f"stopped in {stopped_s:.1f} s with {400 - done} waiting; 400 of 400 after the next start, each inferred once"
    )


def test_nothing_new_is_taken_while_what_runs_is_finished(start: StartDaemon, folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    daemon = start(FakeSettings(gate=str(gate), in_flight=4))
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(ask(daemon, n))) for n in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: counts(daemon, "running", "http") == [4, 4], 60, "four to run, and four to wait")
    wait_for(lambda: daemon.inferred("begun"), 60, "the engine to begin")
    daemon.process.send_signal(signal.SIGTERM)
    wait_for(lambda: len(answers) == 4, 60, "those that wait to be told")
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["Retry-After"] for answer in answers} == {"10"}
    assert all("stopping" in answer.json()["detail"] for answer in answers)
    assert httpx.get(f"{daemon.url}/health/ready", timeout=60).status_code == 503
    assert ask(daemon, 9).status_code == 503
    write_jpegs(folder, [10])
    gate.unlink()
    assert daemon.process.wait(120) == 0
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [503] * 4
    assert len(daemon.inferred("begun")) == 4
    assert not (folder / "00010.txt").exists()


def test_second_signal_ends_it_at_once_and_nothing_is_lost(
    start: StartDaemon, folder: Path, tmp_path: Path, figure: Figure
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    write_jpegs(folder, range(20))
    daemon = start(FakeSettings(gate=str(gate)))
    wait_for(lambda: daemon.inferred("begun"), 60, "the engine to begin")
    engines = daemon.children()
    daemon.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "what runs is finished first" in daemon.text(), 60, "the stop to begin")
    began_s = time.monotonic()
    assert daemon.stop(signal.SIGTERM) == 0
    stopped_s = time.monotonic() - began_s
    assert [pid for pid in engines if state_of(pid) not in ("", "Z")] == []
    assert count_sidecars(folder) == 0
    assert "Traceback" not in daemon.text()
    gate.unlink()
    start(FakeSettings())
    wait_for(lambda: count_sidecars(folder) == 20, 60, "what was begun, and the rest")
    figure(f"ended {stopped_s:.1f} s after the second signal; 20 of 20 captioned after the next start")


def test_stop_does_not_wait_for_a_model_that_loads(start: StartDaemon, folder: Path, figure: Figure) -> None:
    write_jpegs(folder, range(5))
    daemon = start(FakeSettings(load_s=600))
    wait_for(lambda: daemon.status()["model"]["state"] == "loading", 60, "the model to load")
    answers: list[httpx.Response] = []
    person = threading.Thread(target=lambda: answers.append(ask(daemon, 9)))
    person.start()
    wait_for(lambda: daemon.status()["queue"]["running"] == 5, 60, "four pictures and a request to wait for it")
    began_s = time.monotonic()
    assert daemon.stop() == 0
    stopped_s = time.monotonic() - began_s
    assert stopped_s < 40, "it waits neither for the model nor for its drain"
    assert "is given up" not in daemon.text()
    person.join()
    assert (answers[0].status_code, answers[0].headers["Retry-After"]) == (503, "10")
    start(FakeSettings())
    wait_for(lambda: count_sidecars(folder) == 5, 60, "what had waited")
    figure(f"stopped in {stopped_s:.1f} s while the model loaded; 5 of 5 captioned after the next start")


def test_engine_that_stands_still_ends_with_a_daemon_that_is_killed(tmp_path: Path, folder: Path) -> None:
    write_jpegs(folder, [1])
    with DaemonProcess(tmp_path / "home", watching(folder)) as daemon:
        wait_for(lambda: count_sidecars(folder) == 1, 60, "the demo model's caption")
        (engine,) = daemon.children()
        os.kill(engine, signal.SIGSTOP)
        daemon.process.kill()
        daemon.process.wait()
        wait_for(lambda: state_of(engine) in ("", "Z"), 60, "the engine process to end")
