"""The engine process: started by work, ended when idle, replaced when it dies. Real processes with the demo model."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine import handle
from florence_daemon.engine.limits import Limits
from florence_daemon.engine.process import Engine
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.suspects import MAX_CRASHES
from florence_daemon.errors import CheckpointError, EngineCrashed, PictureError, PromptError, Stopping
from tests.conftest import wait_for

CAPTION = (Ask("<CAPTION>"),)


@pytest.fixture
def start_engine() -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(model: str = "demo", idle_unload_s: float = -1, clock: Callable[[], float] | None = None) -> Engine:
        settings = EngineSettings(model, device="cpu", engine="torch", offline=True)
        engines.append(Engine(settings, idle_unload_s, clock) if clock else Engine(settings, idle_unload_s))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close(at_once=True)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "small.png"
    Image.new("RGB", (64, 64), "white").save(path)
    return str(path)


@pytest.fixture
def slow_picture(tmp_path: Path) -> str:
    """A picture that takes seconds to decode: time to kill the engine in the middle."""
    path = tmp_path / "slow.png"
    Image.new("RGB", (14000, 14000), "white").save(path, compress_level=1)
    return str(path)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_at_work(engine: Engine) -> int:
    """Kill the engine process once it has begun with its first request; return its pid."""
    child = wait_for(lambda: engine._processes.child, 60)
    wait_for(lambda: any(pending.has_begun for pending in child.pending.values()), 60, "a request to begin")
    os.kill(child.process.pid, signal.SIGKILL)
    return int(child.process.pid)


def test_process_starts_with_work_and_ends_when_idle(start_engine: Callable[..., Engine], picture: str) -> None:
    now_s = 100.0
    engine = start_engine(idle_unload_s=5.0, clock=lambda: now_s)
    assert engine.state().name == "unloaded"
    future = engine.submit(picture, CAPTION)
    assert engine.state().name == "loading"
    assert future.result(60).answers[0].prompt == "<CAPTION>"
    state = engine.state()
    assert (state.name, state.device, state.unloads_in_s) == ("loaded", "cpu", 5.0)
    now_s = 104.9
    engine.tick(more_waits=False)
    assert engine.state().name == "loaded"
    now_s = 105.0
    engine.tick(more_waits=True)
    assert engine.state().name == "loaded"
    engine.tick(more_waits=False)
    assert engine.state().name == "unloaded"
    assert engine.state().side_px == state.side_px  # who sends pictures need not have it loaded again to know it
    assert state.side_px is not None
    assert state.pid is not None
    assert not is_alive(state.pid)
    assert engine.submit(picture, CAPTION).result(60).size_px == (64, 64)


def test_pictures_errors_reach_their_callers_and_harm_nobody(start_engine: Callable[..., Engine], picture: str) -> None:
    engine = start_engine()
    bad = [
        engine.submit(b"not a picture", CAPTION),
        engine.submit(b"", CAPTION),
        engine.submit("/nowhere.png", CAPTION),
    ]
    good = engine.submit(Path(picture).read_bytes(), CAPTION)
    needs_text = engine.submit(picture, (Ask("<OPEN_VOCABULARY_DETECTION>"),))
    assert all(isinstance(future.exception(60), PictureError) for future in bad)
    assert isinstance(needs_text.exception(60), PromptError)
    assert good.exception(60) is None


def test_killed_process_costs_a_delay_and_no_answer(
    start_engine: Callable[..., Engine], picture: str, slow_picture: str
) -> None:
    engine = start_engine()
    slow, after = engine.submit(slow_picture, CAPTION), engine.submit(picture, CAPTION)
    killed = kill_at_work(engine)
    assert slow.result(120).size_px == (14000, 14000)
    assert after.result(120).size_px == (64, 64)
    assert engine.state().pid != killed


def test_picture_that_brings_the_process_down_is_set_aside_and_the_others_are_answered(
    start_engine: Callable[..., Engine], picture: str, slow_picture: str
) -> None:
    engine = start_engine()
    poison, innocent = engine.submit(slow_picture, CAPTION), engine.submit(picture, CAPTION)
    killed = {kill_at_work_on(engine, slow_picture) for _ in range(MAX_CRASHES)}
    assert len(killed) == MAX_CRASHES
    error = poison.exception(60)
    assert isinstance(error, EngineCrashed)
    assert "ended 3 times while it worked on this picture (killed by signal 9)" in str(error)
    assert innocent.exception(60) is None


def test_picture_that_kills_the_process_in_a_batch_costs_no_other_its_answer(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        handle, "BOOT", handle.BOOT.replace("florence_daemon.engine.child", "tests.engine.poisoned_child")
    )
    engine = start_engine()
    colours = ["white", "black", "blue", "red", "green", "gray", "yellow", "navy"]
    pictures = {colour: encode_picture(Image.new("RGB", (64, 64), colour)) for colour in colours}
    with caplog.at_level(logging.WARNING):
        futures = {colour: engine.submit(picture, CAPTION) for colour, picture in pictures.items()}
        errors = {colour: type(future.exception(120)) for colour, future in futures.items()}
    assert errors == dict.fromkeys(colours, type(None)) | {"red": EngineCrashed}
    assert caplog.text.count("the engine process ended") == MAX_CRASHES


def kill_at_work_on(engine: Engine, picture: str) -> int:
    def at_work() -> int | None:
        child = engine._processes.child
        pending = list(child.pending.values()) if child else []
        return (
            child.process.pid if child and any(p.has_begun and p.request.picture == picture for p in pending) else None
        )

    pid = int(wait_for(at_work, 60, "the engine to be at the picture"))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: engine._processes.child is None or engine._processes.child.process.pid != pid, 60)
    return pid


def test_model_that_is_not_there_is_said_and_not_looked_for_again_at_once(
    start_engine: Callable[..., Engine], picture: str
) -> None:
    engine = start_engine("no-such/model")
    first = engine.submit(picture, CAPTION).exception(60)
    assert isinstance(first, CheckpointError)
    assert "no-such/model" in str(first)
    wait_for(lambda: engine.state().name == "failed")
    with pytest.raises(CheckpointError, match="no-such/model"):
        engine.submit(picture, CAPTION)
    assert engine.state().error == str(first)


def test_closing_gives_what_runs_up_when_told_to(start_engine: Callable[..., Engine], slow_picture: str) -> None:
    engine = start_engine()
    future = engine.submit(slow_picture, CAPTION)
    engine.close(at_once=True)
    assert isinstance(future.exception(60), Stopping)
    with pytest.raises(Stopping):
        engine.submit(slow_picture, CAPTION)


def test_process_ends_with_its_parent(tmp_path: Path, picture: str) -> None:
    script = (
        "import sys, time\n"
        "from florence_daemon.engine.process import Engine\n"
        "from florence_daemon.engine.protocol import Ask, EngineSettings\n"
        "engine = Engine(EngineSettings('demo', engine='torch', offline=True), -1)\n"
        f"engine.submit({picture!r}, (Ask('<CAPTION>'),)).result()\n"
        "print(engine.state().pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    wait_for(lambda: not is_alive(pid), 60, "the engine process to end")


def test_stop_signals_of_a_service_manager_leave_the_process_to_the_daemon(
    start_engine: Callable[..., Engine], picture: str
) -> None:
    engine = start_engine()
    engine.submit(picture, CAPTION).result(60)
    pid = engine.state().pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert engine.submit(picture, CAPTION).exception(60) is None
    assert engine.state().pid == pid


def test_load_without_work_keeps_the_model_for_the_idle_time_from_its_arrival_on(
    start_engine: Callable[..., Engine], picture: str
) -> None:
    now_s = 100.0
    engine = start_engine(idle_unload_s=5.0, clock=lambda: now_s)
    now_s = 200.0
    engine.load()
    assert engine.state().pid is not None
    engine.tick(more_waits=False)
    wait_for(lambda: engine.state().name == "loaded")
    state = engine.state()
    assert (state.unloads_in_s, state.keep_alive_s, state.gpu_bytes) == (5.0, 5.0, None)
    engine.load()
    assert engine.state().pid == state.pid
    now_s = 205.0
    engine.tick(more_waits=False)
    assert engine.state().name == "unloaded"
    engine.close()
    with pytest.raises(Stopping):
        engine.load()


def test_keep_alive_holds_until_the_model_is_unloaded(start_engine: Callable[..., Engine], picture: str) -> None:
    now_s = 100.0
    engine = start_engine(idle_unload_s=5.0, clock=lambda: now_s)
    engine.submit(picture, CAPTION).result(60)
    engine.keep_alive(-1)
    now_s = 10_000.0
    engine.tick(more_waits=False)
    assert engine.state().name == "loaded"
    assert engine.state().unloads_in_s is None
    engine.keep_alive(20)
    assert engine.submit(picture, CAPTION).exception(60) is None
    assert engine.state().unloads_in_s == 20.0
    engine.keep_alive(0)
    engine.tick(more_waits=False)
    assert engine.state().name == "unloaded"
    assert engine.state().keep_alive_s == 5.0


def test_unload_ends_an_idle_process_at_once_and_a_busy_one_after_its_work(
    start_engine: Callable[..., Engine], picture: str, slow_picture: str
) -> None:
    engine = start_engine()
    engine.unload()
    assert engine.state().name == "unloaded"
    assert engine.state().keep_alive_s == -1
    engine.load()
    pid = engine.state().pid
    assert pid is not None
    engine.unload()
    assert engine.state().name == "unloaded"
    assert not is_alive(pid)
    assert engine.state().error is None
    slow = engine.submit(slow_picture, CAPTION)
    engine.unload()
    engine.tick(more_waits=False)
    assert slow.exception(120) is None
    engine.tick(more_waits=False)
    assert engine.state().name == "unloaded"
    assert engine.submit(picture, CAPTION).exception(60) is None
    engine.unload()
    assert engine.state().name == "unloaded"


def test_load_tries_a_model_again_that_could_not_be_had_a_moment_ago(
    start_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = start_engine("no-such/model")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            engine.load()
            wait_for(lambda: engine.state().name == "failed")
    assert caplog.text.count("started, loading no-such/model") == 2


DEMO = EngineSettings("demo", device="cpu", engine="torch", offline=True)


def test_other_settings_replace_the_process_and_what_it_was_at_is_answered_by_the_next(
    start_engine: Callable[..., Engine], picture: str, slow_picture: str
) -> None:
    engine = start_engine()
    engine.submit(picture, CAPTION).result(120)
    before = engine.state().pid
    begun = threading.Event()
    slow = engine.submit(slow_picture, CAPTION, on_begun=begun.set)
    waiting = engine.submit(picture, CAPTION)
    assert begun.wait(60)
    engine.renew(replace(DEMO, num_beams=1), 50.0, Limits())
    assert slow.result(120).answers
    assert waiting.result(120).answers
    state = engine.state()
    assert state.pid not in (None, before)
    assert state.keep_alive_s == 50.0


def test_model_that_could_not_be_had_is_forgotten_with_its_settings(
    start_engine: Callable[..., Engine], picture: str, tmp_path: Path
) -> None:
    engine = start_engine(model=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError):
        engine.submit(picture, CAPTION).result(120)
    assert engine.state().refuses_for_s
    engine.renew(DEMO, -1, Limits())
    assert engine.state().error is None
    assert engine.submit(picture, CAPTION).result(120).answers


def test_same_settings_leave_the_process_alone(start_engine: Callable[..., Engine], picture: str) -> None:
    engine = start_engine()
    engine.submit(picture, CAPTION).result(120)
    before = engine.state().pid
    engine.renew(DEMO, 0.0, Limits())
    assert engine.state().pid == before
    engine.tick(more_waits=False)
    assert engine.state().name == "unloaded"
