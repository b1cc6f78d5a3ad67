"""The service as NSSM runs it: installed by the real command, watched by Windows' own events, asked over HTTP.

Under Wine. torch does not load there, so the engine is benchmarks/faults' stand-in behind the same pipe; the daemon is
the real one. The tests follow one service from its installation to its end, in order.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from benchmarks.faults.fake_engine import FakeSettings, answer_to
from benchmarks.faults.pictures import jpeg
from florence_daemon.nssm import WindowsService, settings
from tests.conftest import Figure, wait_for
from tests.windows.wine import BENCH, Windows, seen_from_windows

NAME = "florence-daemon"
HOME = PureWindowsPath(r"C:\ProgramData") / NAME
STAND_IN = "-m benchmarks.faults.fake_engine run"


class Service:
    """The installed service, from outside."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.home = windows.here(HOME)
        self.pictures = windows.drive_c / "pictures"
        self.gate = windows.drive_c / "gate"
        self.config = self.home / "florence-daemon.yaml"
        self.said = ""

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `florence-daemon service ARGUMENTS`."""
        nssm = str(seen_from_windows(BENCH / "nssm.exe"))
        return self.windows.python("-m", "florence_daemon", "service", *arguments, "--nssm", nssm)

    def configure(self, port: int = 0) -> None:
        """Write the configuration; only events can find a picture before the test is over."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f"model: {{name: demo}}\nserver: {{port: {port}}}\n"
            "folders:\n  - {path: 'C:\\pictures', settle_s: 0.2, rescan_s: 86400, poll: never}\n"
        )

    def log(self) -> str:
        """What the daemon has said since it was installed."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.home / "logs").glob("*.log")))

    def status(self) -> str:
        return self.windows.nssm("status", NAME)

    def variables(self) -> list[str]:
        """The environment that NSSM gives to the daemon."""
        return [line for line in self.windows.nssm("get", NAME, "AppEnvironmentExtra").splitlines() if line]

    def start(self) -> str:
        """Start it and return its address."""
        before = self.log()
        said = self.windows.nssm("start", NAME)
        return self.address(before, said)

    def address(self, before: str = "", said: str = "") -> str:
        """Where the daemon answers, by the last line that says so, which comes after `before`."""
        find = re.compile(r"answers at (http://\S+)\n").findall
        wait_for(lambda: len(find(self.log())) > len(find(before)), 180, f"the daemon's address\n{said}\n{self.log()}")
        return str(find(self.log())[-1])

    def stop(self) -> None:
        self.windows.nssm("stop", NAME)
        wait_for(lambda: self.status() == "SERVICE_STOPPED", 180, "the end of the service")

    def daemon_pid(self) -> int | None:
        """The process outside of the daemon that runs for this service."""
        for directory in Path("/proc").iterdir():
            if not directory.name.isdecimal():
                continue
            try:
                command = (directory / "cmdline").read_bytes()
                environment = (directory / "environ").read_bytes()
            except OSError:
                continue
            if b"fake_engine\0run" in command and os.fsencode(self.windows.drive_c.parent) in environment:
                return int(directory.name)
        return None


@pytest.fixture(scope="module")
def service(windows: Windows) -> Iterator[Service]:
    made = Service(windows)
    made.pictures.mkdir()
    made.configure()
    yield made
    if windows.nssm("status", NAME).startswith("SERVICE_"):
        windows.nssm("stop", NAME)
        windows.nssm("remove", NAME, "confirm")


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=120) as response:
        return json.load(response)


def drop(service: Service, name: str, number: int) -> bytes:
    content = jpeg(number)
    (service.pictures / name).write_bytes(content)
    return content


def caption_beside(service: Service, name: str, timeout_s: float = 180) -> str:
    sidecar = (service.pictures / name).with_suffix(".txt")
    wait_for(sidecar.exists, timeout_s, f"{sidecar.name}\n{service.log()}")
    return sidecar.read_text(encoding="utf-8")


def test_without_a_configuration_nothing_is_installed(service: Service) -> None:
    result = service.command("install", "--config", r"C:\nowhere.yaml")
    assert result.returncode == 2
    assert r"there is no configuration C:\nowhere.yaml" in result.stderr
    assert not service.status().startswith("SERVICE_")


def test_missing_nssm_is_named_and_where_to_get_it(windows: Windows) -> None:
    result = windows.python("-m", "florence_daemon", "service", "install")
    assert result.returncode == 2
    assert "nssm.exe was not found" in result.stderr
    assert "https://nssm.cc" in result.stderr


def test_installed_service_runs_and_answers(service: Service) -> None:
    result = service.command("install")
    assert result.returncode == 0, result.stderr + service.log()
    assert result.stdout.startswith("florence-daemon: installed and started")
    assert service.status() == "SERVICE_RUNNING"
    assert get(f"{service.address()}/model") == "demo"


def test_every_setting_is_made(service: Service) -> None:
    windows = service.windows
    key = rf"HKLM\System\CurrentControlSet\Services\{NAME}"
    kept = windows.run("reg", "query", key, "/s").stdout.replace("\0", "")
    python = seen_from_windows(BENCH / "python" / "python.exe")
    wanted = WindowsService(NAME, python, HOME / "florence-daemon.yaml", HOME)  # type: ignore[arg-type]
    assert windows.nssm("get", NAME, "Start").endswith("AUTO_START")  # Wine does not keep that it is delayed
    assert windows.nssm("get", NAME, "AppExit", "78") == "Exit"
    assert windows.nssm("get", NAME, "AppExit", "Default") == "Restart"
    for name, *values in settings(wanted):
        if name not in ("Start", "AppExit"):
            assert name in kept
            assert all(value in kept or hex(int(value)) in kept for value in values), (name, values, kept)


def test_setting_anew_keeps_what_somebody_added_and_the_configuration(service: Service) -> None:
    windows = service.windows
    gate = str(seen_from_windows(service.gate))
    added = FakeSettings(gate=gate).as_environment()
    elsewhere = service.config.with_name("elsewhere.yaml")
    shutil.copy(service.config, elsewhere)
    wanted = [line.replace(service.config.name, elsewhere.name) for line in service.variables()]
    wanted += [f"{name}={value}" for name, value in added.items()]
    windows.nssm("set", NAME, "AppEnvironmentExtra", *wanted)
    result = service.command("install")
    assert result.returncode == 0, result.stderr + service.log()
    assert result.stdout.startswith("florence-daemon: set anew and started")
    assert sorted(service.variables()) == sorted(wanted)
    service.config = elsewhere
    # From here on the stand-in answers, and what waits is made short.
    service.stop()
    windows.nssm("set", NAME, "AppParameters", STAND_IN)
    windows.nssm("set", NAME, "AppThrottle", "1500")
    windows.nssm("set", NAME, "AppRestartDelay", "500")


def test_picture_dropped_into_a_folder_is_captioned(service: Service) -> None:
    address = service.start()
    wait_for(lambda: "told of changes" in json.dumps(get(f"{address}/status")), 60)
    content = drop(service, "dropped.jpg", 1)
    assert caption_beside(service, "dropped.jpg") == answer_to("<MORE_DETAILED_CAPTION>", content) + "\n"
    wait_for((service.pictures / "dropped.tag").exists, 60)


def test_pictures_are_found_however_they_come(service: Service) -> None:
    deeper = service.pictures / "new" / "deeper"
    deeper.mkdir(parents=True)
    drop(service, "new/deeper/written.jpg", 2)
    service.gate.with_name("moved.tmp").write_bytes(jpeg(3))
    os.rename(service.gate.with_name("moved.tmp"), service.pictures / "moved.jpg")
    drop(service, "browser.part", 4)
    os.rename(service.pictures / "browser.part", service.pictures / "browser.jpg")
    drop(service, "ümläut 漢字 🎨.jpg", 5)
    for name in ("new/deeper/written.jpg", "moved.jpg", "browser.jpg", "ümläut 漢字 🎨.jpg"):
        assert caption_beside(service, name).startswith("more_detailed_caption of ")


def test_http_is_answered(service: Service) -> None:
    address = service.address()
    assert get(f"{address}/prompts")[:2] == ["<GENERATE_TAGS>", "<CAPTION>"]
    picture = jpeg(6)
    body = json.dumps({"image": base64.b64encode(picture).decode(), "prompt": "<CAPTION>"}).encode()
    request = urllib.request.Request(
        f"{address}/process_image", data=body, headers={"Content-Type": "application/json"}
    )
    assert get_json(request) == {"result": answer_to("<CAPTION>", picture)}


def get_json(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def test_commands_ask_the_service(service: Service) -> None:
    address = service.address()
    result = service.windows.python("-m", "florence_daemon", "status", "--server", address)
    assert result.returncode == 0, result.stderr
    assert re.search(r"C:\\pictures +ok ", result.stdout), result.stdout


def test_folder_that_was_removed_and_made_again_is_watched_again(service: Service) -> None:
    address = service.address()
    wait_for(lambda: is_idle(address), what="no sidecar to be written into what is removed")
    shutil.rmtree(service.pictures)
    wait_for(lambda: "is not there" in service.log() or "missing" in service.log(), 60, "the loss")
    service.pictures.mkdir()
    drop(service, "again.jpg", 7)
    assert caption_beside(service, "again.jpg")


def test_stop_arrives_as_ctrl_c_and_what_runs_is_finished(service: Service, figure: Figure) -> None:
    address = service.address()
    wait_for(lambda: is_idle(address), what="the pictures of before to be done with")
    service.gate.write_bytes(b"")
    drop(service, "late.jpg", 8)
    wait_for(lambda: get(f"{address}/status")["queue"]["running"], 60, "the picture's turn")
    stopping = subprocess_stop(service)
    wait_for(lambda: "stopping: what runs is finished first" in service.log(), 60, "the stop")
    assert not (service.pictures / "late.txt").exists()
    service.gate.unlink()
    stopping.wait(180)
    wait_for(lambda: service.status() == "SERVICE_STOPPED", 180)
    assert caption_beside(service, "late.jpg").startswith("more_detailed_caption of ")
    assert service.log().rstrip().endswith("stopped")
    figure("NSSM under Wine: stopped in order, the picture that ran was captioned first")


def is_idle(address: str) -> bool:
    queue = get(f"{address}/status")["queue"]
    return not (queue["settling"] or queue["folder"] or queue["running"])


def subprocess_stop(service: Service) -> subprocess.Popen[bytes]:
    """Ask NSSM to stop the service without waiting for it."""
    return subprocess.Popen(
        ["wine", str(BENCH / "nssm.exe"), "stop", NAME],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=service.windows.environment,
    )


def test_daemon_that_is_killed_is_started_again(service: Service) -> None:
    service.start()
    pid = wait_for(service.daemon_pid, 60, "the daemon's process")
    starts = service.log().count("answers at")
    time.sleep(2.0)  # longer than AppThrottle, or NSSM waits longer still
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: service.log().count("answers at") > starts, 180, "the daemon again")
    drop(service, "after.jpg", 9)
    assert caption_beside(service, "after.jpg")
    service.stop()


def test_wrong_configuration_ends_the_service_and_is_not_tried_again(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service.configure(taken.getsockname()[1])
        service.windows.nssm("start", NAME)
        wait_for(lambda: "cannot be listened on" in service.log(), 60, "the refusal")
        wait_for(lambda: service.status() == "SERVICE_STOPPED", 180, "the end of the service")
        time.sleep(2.0)  # four times AppRestartDelay
        assert service.log().count("cannot be listened on") == 1
        assert service.status() == "SERVICE_STOPPED"


def test_removed_service_leaves_a_persons_files(service: Service) -> None:
    result = service.command("uninstall")
    assert result.returncode == 0, result.stderr
    assert not service.status().startswith("SERVICE_")
    assert service.config.exists()
    assert (service.pictures / "again.txt").exists()
    assert "nothing is removed" in service.command("uninstall").stdout


def test_service_of_somebody_else_is_left_alone(service: Service) -> None:
    windows = service.windows
    windows.nssm("install", "other", r"C:\windows\system32\cmd.exe")
    try:
        for action in ("install", "uninstall"):
            result = service.command(action, "--name", "other")
            assert result.returncode == 2
            assert "was not installed by florence-daemon" in result.stderr
        assert windows.nssm("status", "other").startswith("SERVICE_")
    finally:
        windows.nssm("remove", "other", "confirm")
