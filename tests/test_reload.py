"""A daemon runs while its configuration changes: what counts at once, what waits for a restart, what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.process import DaemonProcess
from florence_daemon.config import Config, FolderConfig, ModelConfig, ServerConfig, StateConfig
from florence_daemon.current import Current
from florence_daemon.errors import ConfigError
from florence_daemon.reload import Reloader, Source, needing_restart
from tests.conftest import run_command, wait_for
from tests.pictures import jpeg


class Changing:
    """A configuration file, the reloader over it, and what it applied."""

    def __init__(self, tmp_path: Path) -> None:
        self.file = tmp_path / "florence-daemon.yaml"
        self.file.write_text("model: {name: demo}\n")
        self.current = Current(Config(), self.file)
        self.applied: list[Config] = []
        self.error: Exception | None = None
        self.reloader = Reloader(Source(self.file, self._read), self.current, self._apply)

    def _read(self) -> Config:
        if self.error is not None:
            raise self.error
        return Config(model=ModelConfig(name=self.file.read_text()))

    def _apply(self, config: Config) -> list[str]:
        self.applied.append(config)
        return ["server.port"]


@pytest.fixture
def changing(tmp_path: Path) -> Changing:
    return Changing(tmp_path)


def test_file_that_stays_as_it_is_is_not_read_again(changing: Changing) -> None:
    for _ in range(3):
        changing.reloader.tick()
    assert changing.applied == []


def test_file_is_read_once_an_editor_has_done_with_it(changing: Changing) -> None:
    changing.file.write_text("half")
    changing.reloader.tick()
    changing.file.write_text("half and the other half")
    changing.reloader.tick()
    assert changing.applied == []
    changing.reloader.tick()
    changing.reloader.tick()
    assert [each.model.name for each in changing.applied] == ["half and the other half"]
    assert changing.current.status()["needs_restart"] == ["server.port"]


def test_file_that_was_replaced_by_another_is_read(changing: Changing, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("model: {name: same size}"[:20])
    os.replace(tmp_path / "new", changing.file)
    changing.reloader.tick()
    changing.reloader.tick()
    assert len(changing.applied) == 1


def test_file_that_went_away_changes_nothing(changing: Changing) -> None:
    changing.file.unlink()
    for _ in range(3):
        changing.reloader.tick()
    assert changing.applied == []
    assert changing.current.error is None


def test_whoever_asks_has_it_read_though_nothing_changed(changing: Changing) -> None:
    changing.reloader.ask()
    changing.reloader.tick()
    changing.reloader.tick()
    assert len(changing.applied) == 1


def test_wrong_file_is_told_and_the_next_right_one_clears_that(changing: Changing) -> None:
    changing.error = ConfigError("a.yaml:3: model.x: unknown setting\na.yaml:4: model.y: unknown setting")
    changing.reloader.ask()
    changing.reloader.tick()
    assert changing.applied == []
    assert changing.current.error == "a.yaml:3: model.x: unknown setting; a.yaml:4: model.y: unknown setting"
    assert changing.current.reasons() == ["the configuration is wrong, and the one before counts; /status says why"]
    changing.error = None
    changing.reloader.ask()
    changing.reloader.tick()
    assert changing.current.error is None
    assert changing.current.reasons() == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_file_that_a_service_sees_no_more_is_told(changing: Changing) -> None:
    with changing.file.open() as held:
        changing.file.unlink()  # as when an editor puts another in its place, and the service was shown this one
        seen = Path(f"/proc/self/fd/{held.fileno()}")
        reloader = Reloader(Source(seen, changing._read), changing.current, changing._apply)
        reloader.ask()
        reloader.tick()
    assert "was replaced by another file, which this service does not see until" in str(changing.current.error)
    assert changing.applied == []


def test_what_shapes_the_listener_and_where_the_state_is_needs_a_restart() -> None:
    started = Config()
    server = ServerConfig(port=1, max_queued=5, token="abc", allowed_hosts=("x",))
    changed = Config(server=server, model=ModelConfig(name="demo"), state=StateConfig(Path("/x")))
    assert needing_restart(started, changed) == ["server.port", "server.max_queued", "state.dir"]
    assert needing_restart(started, started) == []
    elsewhere = attrs.evolve(started, server=ServerConfig(host="0.0.0.0", token="abc"))
    assert needing_restart(started, elsewhere) == ["server.host", "server.token"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reload")


def configuration(*folders: Path, ext: str = "txt", **more: Any) -> dict[str, Any]:
    outputs = [{"prompt": "CAPTION", "ext": ext}]
    listed = [{"path": str(each), "settle_s": 0.2, "outputs": outputs} for each in folders]
    return {"model": {"name": "demo"}, "folders": listed, **more}


class Daemon:
    """The real daemon with the stand-in engine, and its configuration file."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.gate = home / "gate"
        self.process = DaemonProcess(home, json.dumps(configuration()), fake=FakeSettings(gate=str(self.gate)))
        self.file = home / "config.yaml"

    def set(self, settings: dict[str, Any]) -> str:
        """Change the file and have it read at once; return what is logged from then on."""
        with self.reading() as said:
            self.file.write_text(json.dumps(settings))
            self.process.process.send_signal(signal.SIGHUP)
        return "".join(said)

    @contextmanager
    def reading(self, ends: str = "counts now") -> Iterator[list[str]]:
        """Wait at the end of the block until it is logged that the file was read; give what was said by then.

        Else the next test could take the line for its own: it comes a moment after the status tells the same.
        """
        began, said = len(self.process.text()), list[str]()
        yield said
        wait_for(lambda: ends in self.process.text()[began:], what=f"{ends!r} in the log")
        said.append(self.process.text()[began:])

    def folder(self, name: str) -> Path:
        path = self.home / name
        path.mkdir()
        return path


@pytest.fixture(scope="module")
def daemon(home: Path) -> Iterator[Daemon]:
    running = Daemon(home)
    yield running
    running.process.kill()


def drop(folder: Path, name: str) -> None:
    (folder / name).write_bytes(jpeg())


def test_folders_come_go_and_change_while_it_runs(daemon: Daemon) -> None:
    first, second = daemon.folder("first"), daemon.folder("second")
    drop(first, "there.jpg")
    daemon.set(configuration(first))
    wait_for((first / "there.txt").exists)
    daemon.set(configuration(first, second))
    drop(second, "b.jpg")
    wait_for((second / "b.txt").exists)
    daemon.set(configuration(second, ext="caption"))
    wait_for((second / "b.caption").exists)
    drop(first, "late.jpg")
    drop(second, "c.jpg")
    wait_for((second / "c.caption").exists)
    assert [each["path"] for each in daemon.process.status()["folders"]] == [str(second)]
    assert not (first / "late.txt").exists()


def test_wrong_file_is_told_with_its_line_and_the_old_one_stays(daemon: Daemon) -> None:
    folder = daemon.folder("stays")
    daemon.set(configuration(folder))
    with daemon.reading(f"stays in force: {daemon.file}:3: model.num_beams"):
        daemon.file.write_text("model:\n  name: demo\n  num_beams: many\n")
    status = daemon.process.status()
    assert status["configuration"]["error"] == f"{daemon.file}:3: model.num_beams: 'many' is not a whole number"
    assert "the one before counts" in " ".join(daemon.process.get("/health/ready")["reasons"])
    drop(folder, "a.jpg")
    wait_for((folder / "a.txt").exists)
    with daemon.reading():
        daemon.file.write_text(json.dumps(configuration(folder)))
    assert daemon.process.status()["configuration"]["error"] is None
    assert daemon.process.get("/health/ready")["status"] == "ok"


def test_port_and_state_need_a_restart_and_are_named(daemon: Daemon) -> None:
    daemon.set(configuration(server={"port": 1}, state={"dir": "elsewhere"}))
    # The port is given on the command line here, which wins over the file.
    wait_for(lambda: "count after a restart: state.dir" in daemon.process.text())
    assert daemon.process.status()["configuration"]["needs_restart"] == ["state.dir"]
    daemon.set(configuration())
    assert daemon.process.status()["configuration"]["needs_restart"] == []


def test_token_counts_at_once(daemon: Daemon) -> None:
    daemon.set(configuration(server={"token": "secret-enough"}))
    with pytest.raises(OSError, match="401"):
        daemon.process.status()
    log = daemon.set(configuration())
    assert "secret-enough" not in log
    daemon.process.status()


def test_origins_of_other_sites_wait_for_a_restart_as_is_said(daemon: Daemon) -> None:
    daemon.set(configuration(server={"allowed_origins": ["https://photos.example"]}))
    assert daemon.process.status()["configuration"]["needs_restart"] == ["server.allowed_origins"]
    answer = httpx.get(f"{daemon.process.url}/status", headers={"Origin": "https://photos.example"}, timeout=60)
    assert answer.status_code == 403
    daemon.set(configuration())


def test_other_model_replaces_the_process_and_no_picture_is_lost(daemon: Daemon) -> None:
    folder = daemon.folder("changing")
    daemon.set(configuration(folder))
    drop(folder, "first.jpg")
    wait_for((folder / "first.txt").exists)
    before = daemon.process.status()["model"]
    daemon.gate.touch()
    for number in range(12):
        drop(folder, f"{number}.jpg")
    wait_for(lambda: daemon.process.status()["queue"]["running"])
    daemon.set(configuration(folder) | {"model": {"name": "demo", "num_beams": 1, "idle_unload_s": 77}})
    daemon.gate.unlink()
    wait_for(lambda: all((folder / f"{number}.txt").exists() for number in range(12)))
    after = daemon.process.status()["model"]
    assert before["pid"] != after["pid"]
    assert after["idle_unload_s"] == 77
    assert daemon.process.status()["failures"] == []


def test_setting_that_only_the_daemon_needs_leaves_the_process_alone(daemon: Daemon) -> None:
    folder = daemon.folder("idle")
    daemon.set(configuration(folder))
    drop(folder, "a.jpg")
    wait_for((folder / "a.txt").exists)
    before = daemon.process.status()["model"]["pid"]
    daemon.set(configuration(folder) | {"model": {"name": "demo", "idle_unload_s": 5000}})
    now = daemon.process.status()["model"]
    assert now["pid"] == before
    assert now["unloads_in_s"] > 1000


def test_what_waited_of_a_folder_that_is_changed_gets_the_new_settings(daemon: Daemon) -> None:
    folder = daemon.folder("waiting")
    daemon.set(configuration(folder))
    daemon.gate.touch()
    for number in range(20):
        drop(folder, f"{number:02}.jpg")
    wait_for(lambda: daemon.process.status()["queue"]["folder"] >= 8)
    daemon.set(configuration(folder, ext="caption"))
    wait_for(lambda: daemon.process.status()["queue"]["folder"] >= 8)
    daemon.gate.unlink()
    wait_for(lambda: len(list(folder.glob("*.caption"))) >= 16)
    assert len(list(folder.glob("*.txt"))) <= 4  # those that the engine was at


def test_folder_that_did_not_change_is_not_disturbed() -> None:
    from florence_daemon.folders.watch import Watcher
    from tests.folders.intake import Notes

    notes = Notes()
    one, other = FolderConfig(path=Path("/one")), FolderConfig(path=Path("/other"))
    watcher = Watcher([one, other], notes, lambda: 0.0)
    kept = watcher.roots[0]
    watcher.renew([one, FolderConfig(path=Path("/third"))])
    assert watcher.roots[0] is kept
    assert [each.path for each in watcher.roots] == ["/one", "/third"]
    assert notes.folders_left == [other]
    watcher.renew([one, one])
    watcher.renew([])
    assert watcher.roots == []
    assert notes.folders_left[1:] == [FolderConfig(path=Path("/third")), one, one]


def test_settings_of_a_directory_are_taken_up_refused_and_mended_while_it_runs(daemon: Daemon) -> None:
    folder = daemon.folder("inherits")
    settings = configuration(folder)
    settings["folders"][0]["overwrite"] = "stale"
    daemon.set(settings)
    drop(folder, "a.jpg")
    wait_for((folder / "a.txt").exists)
    before = (folder / "a.txt").read_text()
    (folder / ".florence.yaml").write_text("prefix: 'ohwx, '\n")
    wait_for(lambda: (folder / "a.txt").read_text() == "ohwx, " + before)
    (folder / ".florence.yaml").write_text("prefixx: 'ohwx, '\n")
    (now,) = wait_for(lambda: [each for each in daemon.process.status()["folders"] if each["health"] == "degraded"])
    assert f"{folder}/.florence.yaml:1: prefixx: unknown setting; did you mean prefix?" in now["reason"]
    wait_for(lambda: f"{folder}/.florence.yaml:1: prefixx" in daemon.process.text(), what="it to be logged")
    shown = run_command("status", "--server", daemon.process.url, home=daemon.home)
    assert "unknown setting; did you mean prefix?" in " ".join(shown.stdout.split())
    drop(folder, "b.jpg")
    (folder / ".florence.yaml").write_text("prefix: 'mended, '\n")
    wait_for(lambda: (folder / "b.txt").exists() and (folder / "b.txt").read_text().startswith("mended, "))
    wait_for(lambda: (folder / "a.txt").read_text() == "mended, " + before)
    assert [each["health"] for each in daemon.process.status()["folders"]] == ["ok"]
    assert daemon.process.status()["failures"] == []
