"""The container's files keep to the program and to each other; its command, health check and PID 1 are run for real.

Building the image takes a container engine and minutes: tools/container_bench.py does that, and tries the image.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from florence_daemon import config_file, daemon
from florence_daemon.config import Config
from tests.conftest import clean_environment, wait_for
from tests.pictures import DETAILED, jpeg

ROOT = Path(__file__).parents[1]
TOKEN = {"FLORENCE_DAEMON_SERVER__TOKEN": "sesame-open-sesame"}
PREFIX = config_file.ENV_PREFIX


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions with what follows them, lines that go on joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def given(name: str) -> list[str]:
    found = [rest for each, rest in instructions() if each == name]
    assert found, f"the Containerfile has no {name}"
    return found


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(given("ENV"))))


def health_check() -> list[str]:
    """The command, with this Python in place of the image's."""
    command: list[str] = json.loads(given("HEALTHCHECK")[-1].partition("CMD ")[2])
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def is_healthy(port: int) -> bool:
    environment = os.environ | {f"{PREFIX}SERVER__PORT": str(port), "HTTP_PROXY": "http://192.0.2.1:9"}
    done = subprocess.run(health_check(), env=environment, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def load_as_in_the_image(file: Path | None, **more: str) -> Config:
    ours = {name: value for name, value in image_environment().items() if name.startswith(PREFIX)}
    return config_file.load(file, ours | more)


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def services(compose: dict[str, Any]) -> list[dict[str, Any]]:
    assert len(compose["services"]) == 2
    return list(compose["services"].values())


@pytest.fixture
def answering() -> Iterator[Any]:
    """Starts a server that answers every request with one status."""
    started: list[http.server.HTTPServer] = []

    def start(status: int) -> int:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        started.append(http.server.HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return int(started[-1].server_port)

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


# The image


def test_what_is_copied_is_there_and_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "all is left out but what is named"
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = {name for rest in given("COPY") if "--from=" not in rest for name in rest.split()[:-1]}
    assert copied == sent
    assert [name for name in sent if not (ROOT / name).exists()] == []


def test_everything_the_package_is_built_from_is_copied() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^(?:readme = |license-files = \[)"(.+?)"', project, re.MULTILINE)
    assert len(named) == 2
    assert {"pyproject.toml", "constraints.txt", "florence_daemon", *named} <= set(" ".join(given("COPY")).split())


def test_extras_of_each_variant_exist() -> None:
    known = metadata.metadata("florence-daemon").get_all("Provides-Extra") or []
    variants = dict(re.findall(r'(\w+)\) extras="([\w ]+)"', " ".join(given("RUN"))))
    assert set(variants) == {"cpu", "cuda"}
    for extras in variants.values():
        assert set(extras.split()) <= set(known)


def test_program_runs_as_nobody_special() -> None:
    user, group = given("USER")[-1].split(":")
    assert min(int(user), int(group)) >= 10000, "a number, so that Kubernetes can see that it is not root"
    assert f"--uid {user} " in " ".join(given("RUN"))


def test_image_starts_with_a_configuration_that_is_right() -> None:
    config = load_as_in_the_image(ROOT / "config" / "container.yaml")
    assert [str(folder.path) for folder in config.folders] == ["/pictures"]
    environment = image_environment()
    assert given("EXPOSE") == [str(config.server.port)]
    volumes = json.loads(given("VOLUME")[-1])
    assert [str(config_file.state_directory(config.state, environment)), environment["HF_HOME"]] == volumes[::-1]
    target = next(rest.split()[-1] for rest in given("COPY") if "container.yaml" in rest)
    assert Path(target) in config_file.default_paths(environment)


def test_no_file_moves_the_port_away_from_the_health_check(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("server: {port: 8000}\n")
    config = load_as_in_the_image(tmp_path / "mine.yaml")
    assert str(config.server.port) == image_environment()[f"{PREFIX}SERVER__PORT"]


def test_every_variable_that_is_documented_is_a_setting() -> None:
    text = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
    documented = re.findall(rf"--env '?({PREFIX}\w+)=(\[[^\]]*\]|[\w./-]+)", text)
    names = {name.removeprefix(PREFIX) for name, _ in documented}
    assert {"MODEL__SERVER", "MODEL__DEVICE", "SERVER__ALLOWED_HOSTS"} <= names
    for name, value in documented:
        load_as_in_the_image(None, **{name: value}, **TOKEN)


def test_health_check_tells_well_from_ill_and_from_gone(answering: Any) -> None:
    assert is_healthy(answering(200))
    assert not is_healthy(answering(503))
    gone = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    gone.server_close()
    assert not is_healthy(gone.server_port)


# The program as the image starts it


def start(directory: Path, *before: str, **more: str) -> subprocess.Popen[bytes]:
    """The image's command with a folder of this directory as its pictures."""
    (directory / "pictures").mkdir(exist_ok=True)
    (directory / "mine.yaml").write_text("folders: [{path: pictures, settle_s: 0.2}]\n")
    environment = {name: value for name, value in image_environment().items() if name.startswith(PREFIX)}
    environment |= {f"{PREFIX}SERVER__PORT": "0", f"{PREFIX}MODEL__NAME": "demo", f"{PREFIX}MODEL__ENGINE": "torch"}
    environment |= {config_file.ENV_FILE: str(directory / "mine.yaml"), "STATE_DIRECTORY": str(directory / "state")}
    command: list[str] = json.loads(given("CMD")[-1])
    assert json.loads(given("ENTRYPOINT")[-1]) == ["florence-daemon"]
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "florence_daemon", *command],
            env=clean_environment(directory) | environment | more,
            stdout=log,
            stderr=log,
        )


def port_of(directory: Path) -> int:
    """The port it says it answers at, once it does."""
    found = wait_for(lambda: re.search(r"answers at http://[\d.]+:(\d+)\s", (directory / "log").read_text()), 180)
    return int(found[1])


def test_without_a_token_it_does_not_start_and_says_which_variable_to_set(tmp_path: Path) -> None:
    assert start(tmp_path).wait(180) == 78
    assert f"{PREFIX}SERVER__TOKEN" in (tmp_path / "log").read_text()


def test_real_daemon_is_healthy_beyond_loopback_without_telling_the_check_its_token(tmp_path: Path) -> None:
    process = start(tmp_path, **TOKEN)
    try:
        assert is_healthy(port_of(tmp_path))
    finally:
        process.terminate()
    assert process.wait(120) == 0


def test_as_pid_1_it_captions_and_a_stop_ends_it_in_order(tmp_path: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("needs unshare, and the right to make a PID namespace")
    process = start(tmp_path, *unshare, **TOKEN)
    try:
        port_of(tmp_path)
        first = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        assert re.search(r"^NSpid:.*\t1$", Path(f"/proc/{first}/status").read_text(), re.MULTILINE)
        (tmp_path / "pictures" / "a.jpg").write_bytes(jpeg())
        wait_for((tmp_path / "pictures" / "a.tag").exists, 180, "the picture's tags")
        assert (tmp_path / "pictures" / "a.txt").read_text() == DETAILED + "\n"
        os.kill(first, signal.SIGTERM)
        assert process.wait(120) == 0
        assert "stopping: what runs is finished first" in (tmp_path / "log").read_text()
    finally:
        process.kill()


# compose.yaml


def test_each_service_builds_a_variant_that_there_is(services: list[dict[str, Any]]) -> None:
    arguments = {rest.partition("=")[0] for rest in given("ARG")}
    for service in services:
        build = service["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).samefile(ROOT / "Containerfile")
        assert set(build["args"]) <= arguments
        assert service["image"].endswith(f":{build['args']['VARIANT']}")
        assert service["profiles"] == [build["args"]["VARIANT"]]
    assert {service["build"]["args"]["VARIANT"] for service in services} == {"cpu", "cuda"}


def test_gpu_is_asked_for_by_the_variant_that_uses_it(services: list[dict[str, Any]]) -> None:
    for service in services:
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        wanted = [["gpu"]] if service["build"]["args"]["VARIANT"] == "cuda" else []
        assert [each["capabilities"] for each in devices] == wanted


def test_volumes_and_port_are_those_of_the_image(compose: dict[str, Any], services: list[dict[str, Any]]) -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for service in services:
        mounts = dict(volume.rsplit(":", 1)[::-1] for volume in service["volumes"])
        assert set(mounts) == {*json.loads(given("VOLUME")[-1]), "/pictures"}
        named = {source for source in mounts.values() if not source.startswith("$")}
        assert named == set(compose["volumes"])
        assert [port.rsplit(":", 1)[1] for port in service["ports"]] == given("EXPOSE")
    assert f":{config_file.default_paths({})[-1].parent}:ro" in text, "where a configuration of one's own is mounted"


def test_settings_are_settings_and_compose_refuses_to_start_without_a_token(services: list[dict[str, Any]]) -> None:
    offered = re.findall(rf'# ({PREFIX}\w+): "([^"]*)"', (ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert offered
    for service in services:
        environment: dict[str, str] = service["environment"]
        assert re.fullmatch(r"\$\{(\w+):\?.+\}", environment[f"{PREFIX}SERVER__TOKEN"])
        filled = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in environment.items()}
        config = load_as_in_the_image(None, **filled | TOKEN | dict(offered))
        assert config.model == Config().model
        assert config.server.allowed_hosts


def test_a_stop_has_the_time_it_may_take_and_no_rights_are_left(services: list[dict[str, Any]]) -> None:
    for service in services:
        assert int(service["stop_grace_period"].removesuffix("s")) > daemon.STOP_S
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]


def test_other_containers_reach_it_by_a_name_that_it_answers_to(services: list[dict[str, Any]]) -> None:
    for service in services:
        assert service["hostname"] == service["container_name"] == "florence-daemon"
