"""Several engines in one daemon, with real processes: which there are, what they share, what one that fails costs."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.faults.fake_engine import DIES, FakeSettings
from benchmarks.faults.pictures import count_sidecars, is_captioned_rightly, jpeg, write_jpegs
from benchmarks.faults.process import DaemonProcess, wait_for, watching
from florence_daemon import engines
from florence_daemon.config import Config, ModelConfig, StateConfig
from florence_daemon.engine.limits import memory_limit_bytes
from tests.conftest import Figure, run_command

PICTURES = 60


def listed(tmp_path: Path, **model: Any) -> list[tuple[str, int, int]]:
    config = Config(model=ModelConfig(**model), state=StateConfig(dir=tmp_path))
    return [(each.name, each.part, each.parts) for each in engines.engine_list(config)]


def test_each_device_has_an_engine_and_those_on_the_processor_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listed(tmp_path) == [("auto", 0, 1)]
    assert listed(tmp_path, device=("cuda:0", "cuda:1")) == [("cuda:0", 0, 1), ("cuda:1", 0, 1)]
    assert listed(tmp_path, device=("cpu", "cuda:0", "cpu")) == [("cpu", 0, 2), ("cuda:0", 0, 1), ("cpu", 1, 2)]
    for count, wanted in ((0, ["auto"]), (3, ["cuda:0", "cuda:1", "cuda:2"])):
        monkeypatch.setattr(engines, "count_gpus", lambda count=count: count)
        assert [name for name, _, _ in listed(tmp_path, device="all")] == wanted


def test_what_needs_one_engine_takes_the_first_and_counts_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(engines, "count_gpus")
    for device, first in (("all", "auto"), (("cuda:1", "cpu"), "cuda:1"), ("cpu", "cpu")):
        config = Config(model=ModelConfig(device=device), state=StateConfig(dir=tmp_path))
        assert (engines.engine_settings(config).device, engines.engine_settings(config).parts) == (first, 1)


def test_engines_on_the_processor_share_what_memory_the_machine_has_but_not_a_limit_that_is_set() -> None:
    def limit(device: Any, setting_mb: int) -> int | None:
        model = ModelConfig(device=device, memory_limit_mb=setting_mb)
        return engines.engine_limits(Config(model=model)).memory_bytes

    whole = memory_limit_bytes(0)
    assert whole is not None
    assert limit(("cpu", "cpu"), 0) == whole // 2
    assert limit(("cuda:0", "cpu"), 0) == whole
    assert limit(("cpu", "cpu"), 1000) == 1000 * 2**20
    assert limit(("cpu", "cpu"), -1) is None


def configuration(folder: Path, *devices: str, **model: Any) -> str:
    settings = json.loads(watching(folder))
    settings["model"] |= {"device": list(devices)} | model
    return json.dumps(settings)


def engines_of(daemon: DaemonProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.status()["model"]["engines"]
    return found


def work_as(daemon: DaemonProcess, devices: list[str]) -> bool:
    """Whether its engines are these, and one at least has something to do."""
    now = engines_of(daemon)
    return [each["name"] for each in now] == devices and any(each["running"] for each in now)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def degraded(home: Path) -> Iterator[DaemonProcess]:
    """A daemon with the demo model on two halves of the processor, and on a GPU that is not there; all captioned."""
    folder = home / "pictures"
    folder.mkdir()
    write_jpegs(folder, range(PICTURES // 2))
    with DaemonProcess(home / "real", configuration(folder, "cpu", "cpu", "cuda:99")) as daemon:
        wait_for(lambda: [each["state"] for each in engines_of(daemon)][:2] == ["loaded"] * 2, 240, "both to load")
        write_jpegs(folder, range(PICTURES // 2, PICTURES))
        wait_for(lambda: count_sidecars(folder) == PICTURES and daemon.is_quiet(), 120, "all to be captioned")
        yield daemon


def test_two_engines_share_a_folder_and_one_that_cannot_load_costs_nothing(degraded: DaemonProcess) -> None:
    first, second, missing = engines_of(degraded)
    assert first["answered"] + second["answered"] == PICTURES
    assert min(first["answered"], second["answered"]) > 0
    assert first["pid"] != second["pid"]
    assert (first["state"], first["device"], first["error"]) == ("loaded", "cpu", None)
    assert (missing["name"], missing["state"], missing["answered"]) == ("cuda:99", "failed", 0)
    assert "The device 'cuda:99' is not available; there are: auto, cpu" in missing["error"]
    assert degraded.failures() == {}


def test_an_engine_that_is_left_out_is_told_and_the_daemon_works_on(degraded: DaemonProcess) -> None:
    ready = degraded.get("/health/ready")
    assert ready["status"] == "degraded"
    assert ready["reasons"] == ["cuda:99: The device 'cuda:99' is not available; there are: auto, cpu"]
    model = degraded.status()["model"]
    assert (model["state"], model["device"]) == ("loaded", "cpu")
    assert model["resident_mb"] >= sum(each["resident_mb"] or 0 for each in model["engines"]) - 2
    said = run_command("status", "--server", degraded.url, home=degraded.home).stdout
    assert "engines   cpu      loaded" in said
    assert "          cuda:99  failed  The device 'cuda:99' is not available; there are: auto, cpu" in said
    metrics = httpx.get(f"{degraded.url}/metrics", timeout=60).text
    assert 'florence_daemon_engine_state{device="cuda:99",engine="2",state="failed"} 1.0' in metrics
    assert 'florence_daemon_engine_memory_bytes{device="cpu",engine="1",kind="gpu"} 0.0' in metrics


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux keeps a process to some cores")
def test_engines_on_the_processor_have_different_cores(degraded: DaemonProcess) -> None:
    first, second = (os.sched_getaffinity(each["pid"]) for each in engines_of(degraded)[:2])
    every = os.sched_getaffinity(degraded.pid)
    assert first | second == every
    assert len(every) == 1 or not first & second


def test_killed_engine_costs_a_second_try_of_what_it_was_at(tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = write_jpegs(folder, range(PICTURES))
    fake = FakeSettings(slow_s=0.05)
    with DaemonProcess(tmp_path / "home", configuration(folder, "cpu", "cpu"), fake=fake) as daemon:
        wait_for(lambda: all(each["answered"] > 3 for each in engines_of(daemon)), 120, "both to work")
        one = engines_of(daemon)[0]
        os.kill(one["pid"], signal.SIGKILL)
        wait_for(lambda: count_sidecars(folder) == PICTURES and daemon.is_quiet(), 120, "all to be captioned")
        assert daemon.failures() == {}
        begun = Counter(each.picture for each in daemon.inferred("begun"))
    assert all(map(is_captioned_rightly, pictures))
    assert sum(begun.values()) <= PICTURES + 1  # the stand-in begins with one at a time
    assert max(begun.values()) <= 2
    figure(
        f"one of two engines killed: {PICTURES} of {PICTURES} captioned, {sum(begun.values()) - PICTURES} begun twice"
    )


@pytest.mark.parametrize("fault", [{"broken_part": 0}, {"helpless_part": 0}], ids=lambda fault: next(iter(fault)))
def test_engine_that_fails_at_every_picture_costs_none_its_caption(
    tmp_path: Path, fault: dict[str, int], figure: Figure
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = write_jpegs(folder, range(PICTURES))
    fake = FakeSettings(slow_s=0.02, **fault)
    with DaemonProcess(tmp_path / "home", configuration(folder, "cpu", "cpu"), fake=fake) as daemon:
        wait_for(lambda: count_sidecars(folder) == PICTURES and daemon.is_quiet(), 120, "all to be captioned")
        broken, whole = engines_of(daemon)
        assert (broken["answered"], whole["answered"]) == (0, PICTURES)
        assert daemon.failures() == {}
    assert all(map(is_captioned_rightly, pictures))
    figure(f"one of two engines failing at every picture: {PICTURES} of {PICTURES} captioned by the other")


def test_picture_that_brings_down_every_engine_is_set_aside_and_the_others_are_captioned(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = write_jpegs(folder, range(PICTURES))
    (folder / "poison.jpg").write_bytes(jpeg(PICTURES, DIES))
    fake = FakeSettings(slow_s=0.02)
    with DaemonProcess(tmp_path / "home", configuration(folder, "cpu", "cpu"), fake=fake) as daemon:
        wait_for(lambda: count_sidecars(folder) == PICTURES and daemon.is_quiet(), 120, "all to be captioned")
        (failure,) = wait_for(lambda: daemon.status()["failures"], 60, "the poison to be set aside")
        assert (Path(failure["path"]).name, failure["attempts"]) == ("poison.jpg", 3)
        assert "ended 3 times while it worked on this picture" in failure["reason"]
        begun = [each.picture for each in daemon.inferred("begun")]
    assert begun.count(str(folder / "poison.jpg")) == 3
    assert all(map(is_captioned_rightly, pictures))


def test_engines_that_are_idle_all_leave(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_jpegs(folder, range(30))
    settings = configuration(folder, "cpu", "cpu", idle_unload_s=0.5)
    with DaemonProcess(tmp_path / "home", settings, fake=FakeSettings(slow_s=0.02)) as daemon:
        wait_for(lambda: count_sidecars(folder) == 30, 120, "all to be captioned")
        wait_for(lambda: [each["state"] for each in engines_of(daemon)] == ["unloaded"] * 2, 60, "both to leave")
        wait_for(lambda: not daemon.children(), 60, "their processes to end")


def test_engines_come_and_go_with_the_configuration_and_nothing_is_lost(tmp_path: Path) -> None:
    folder, gate = tmp_path / "pictures", tmp_path / "gate"
    folder.mkdir()
    gate.touch()
    pictures = write_jpegs(folder, range(PICTURES))
    with DaemonProcess(tmp_path / "home", configuration(folder, "cpu"), fake=FakeSettings(gate=str(gate))) as daemon:
        for devices in (["cpu", "cpu", "cpu"], ["cpu", "cpu"], ["cpu"], ["cpu", "cpu"]):
            (daemon.home / "config.yaml").write_text(configuration(folder, *devices))
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda devices=devices: work_as(daemon, devices), 60, f"{devices} to work")
        gate.unlink()
        wait_for(lambda: count_sidecars(folder) == PICTURES and daemon.is_quiet(), 120, "all to be captioned")
        assert daemon.failures() == {}
    assert all(map(is_captioned_rightly, pictures))
