"""The service under a real systemd as PID 1: installed, sandboxed, watched, stopped, updated, removed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.pictures import DETAILED, TAGS, jpeg, write_many
from tests.services.container import PERSON, PYTHON, Container, boot

UNIT = "etc/systemd/system/florence-daemon.service"
CONFIG = "etc/florence-daemon/florence-daemon.yaml"
# What would take a test a minute; all else is as it is installed.
IMPATIENT = "[Service]\nWatchdogSec=15\nTimeoutAbortSec=2\nRestartSec=1\n"
SERVICE = (PYTHON, "-m", "florence_daemon", "service")


# pytest's own: what is noted as a figure gets into docs/reliability.md.
Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    booted = boot()
    yield booted
    booted.close()


@pytest.fixture
def install(container: Container) -> Iterator[Callable[..., str]]:
    """Installs the service for a folder in /srv; removed after the test, with what the daemon remembers."""
    folder = container.root / "srv" / "pictures"
    folder.mkdir()

    def install_service(*folders: str, engine: str = "torch", device: str = "cpu") -> str:
        (container.root / CONFIG).parent.mkdir(exist_ok=True)
        paths = "".join(f"  - {{path: {path}, settle_s: 0.2, rescan_s: 1}}\n" for path in folders or ("/srv/pictures",))
        model = f"model: {{name: demo, engine: {engine}, device: {device}}}\n"
        (container.root / CONFIG).write_text(f"{model}folders:\n{paths}")
        drop_in = container.root / f"{UNIT}.d" / "impatient.conf"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(IMPATIENT)
        container.run("systemd-sysusers", "--inline", "u florence-daemon -")
        container.run("chown", "florence-daemon:", "/srv/pictures")
        done = container.run(*SERVICE, "install")
        return done.stdout + done.stderr

    yield install_service
    container.run(*SERVICE, "uninstall")
    container.run(
        "sh", "-c", "rm -r /srv/* /etc/florence-daemon /var/lib/florence-daemon /etc/systemd/system/florence*"
    )


def drop(folder: Path, name: str = "a") -> Path:
    """Put a picture into a folder of the container. Returns the sidecar that is to come."""
    (folder / f"{name}.jpg").write_bytes(jpeg())
    return folder / f"{name}.txt"


def wait_for_caption(sidecar: Path) -> None:
    wait_for(sidecar.with_suffix(".tag").exists, 180, f"{sidecar.name} and its tags")
    assert sidecar.read_text() == DETAILED + "\n"
    assert sidecar.with_suffix(".tag").read_text() == TAGS + "\n"


def restarted(container: Container, old_pid: str) -> Callable[[], bool]:
    """Whether systemd has started another process, which is ready."""

    def is_restarted() -> bool:
        state, pid = container.show("SubState", "MainPID")
        return state == "running" and pid not in (old_pid, "0")

    return is_restarted


def send(container: Container, signal: str) -> None:
    container.run("systemctl", "kill", "--kill-whom=main", f"--signal={signal}", "florence-daemon")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_picture_is_captioned_inside_the_whole_sandbox(
    container: Container, install: Callable[..., str], engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    assert "installed and started" in install(engine=engine)
    assert container.show("ActiveState", "Type", "StatusText")[:2] == ["active", "notify"]
    sidecar = drop(container.root / "srv" / "pictures")
    wait_for_caption(sidecar)
    warned = ["journalctl", "--identifier=florence-daemon", "--priority=warning", "--output=cat", "--no-pager"]
    (container.root / "srv" / "pictures" / "broken.jpg").write_bytes(jpeg()[:3000])
    wait_for(
        lambda: "broken.jpg: not captioned: is truncated" in container.out(*warned), 120, "a warning in the journal"
    )
    assert "a.jpg" not in container.out(*warned)
    account = int(container.out("id", "--user", "florence-daemon"))
    assert (sidecar.stat().st_uid, oct(sidecar.stat().st_mode)) == (account, "0o100664")
    (pid,) = container.show("MainPID")
    status = (container.root / "proc" / pid / "status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    seen = container.root / "proc" / pid / "root"
    assert os.listdir(seen / "home") == []


@pytest.mark.parametrize("signal", ["KILL", "ABRT"])
def test_killed_daemon_is_started_again(
    container: Container, install: Callable[..., str], record_property: Note, signal: str
) -> None:
    install()
    (pid,) = container.show("MainPID")
    began_s = time.monotonic()
    send(container, signal)
    wait_for(restarted(container, pid), 60, "a new process")
    record_property("figure", f"SIG{signal}: ready again after {time.monotonic() - began_s:.0f} s (RestartSec 1)")
    assert container.show("NRestarts") == ["1"]
    if signal == "ABRT":
        assert "Fatal Python error: Aborted" in container.journal(), "every thread's traceback tells where it hung"
    wait_for_caption(drop(container.root / "srv" / "pictures"))


def test_frozen_daemon_is_replaced_by_the_watchdog(
    container: Container, install: Callable[..., str], record_property: Note
) -> None:
    install()
    (pid,) = container.show("MainPID")
    began_s = time.monotonic()
    send(container, "STOP")
    sidecar = drop(container.root / "srv" / "pictures")
    wait_for(restarted(container, pid), 60, "a new process")
    record_property(
        "figure", f"frozen: replaced after {time.monotonic() - began_s:.0f} s (WatchdogSec 15, TimeoutAbortSec 2)"
    )
    assert "Watchdog timeout (limit 15s)!" in container.journal()
    wait_for_caption(sidecar)


def test_wrong_configuration_is_not_tried_again_and_again(
    container: Container, install: Callable[..., str], record_property: Note
) -> None:
    install()
    (container.root / CONFIG).write_text("model: {num_beams: 0}\n")
    assert container.run("systemctl", "restart", "florence-daemon", check=False).returncode != 0
    time.sleep(3)  # three times RestartSec
    assert container.show("ExecMainStatus", "NRestarts", "ActiveState") == ["78", "0", "failed"]
    record_property("figure", "wrong configuration: exit code 78, 0 further starts")
    refused = container.run(*SERVICE, "install", check=False)
    assert refused.returncode == 78
    assert "model.num_beams: 0 is out of range" in refused.stderr
    container.run(*SERVICE, "uninstall")
    assert container.show("ActiveState", "LoadState") == ["inactive", "not-found"]


def test_service_that_does_not_start_has_its_last_words_shown(
    container: Container, install: Callable[..., str]
) -> None:
    install()
    (container.root / CONFIG).write_text("{model: {name: demo}, server: {port: 80}}\n")
    refused = container.run(*SERVICE, "install", check=False)
    assert refused.returncode == 1
    assert "the service did not start" in refused.stderr
    assert "127.0.0.1:80 cannot be listened on: Permission denied" in refused.stderr.split("Its last words:")[1]


def test_model_that_cannot_be_had_stops_the_installation_before_anything_is_written(
    container: Container, install: Callable[..., str]
) -> None:
    install()
    container.run(*SERVICE, "uninstall")
    (container.root / CONFIG).write_text("model: {name: /srv/no-such-model}\n")
    refused = container.run(*SERVICE, "install", check=False)
    assert refused.returncode == 1
    assert "no directory '/srv/no-such-model'" in refused.stderr
    assert "nothing was installed" in refused.stderr
    assert not (container.root / UNIT).exists()


def test_stop_finishes_what_runs_and_the_start_goes_on(
    container: Container, install: Callable[..., str], record_property: Note
) -> None:
    folder = container.root / "srv" / "pictures"
    pictures = write_many(folder, 150)
    install()
    wait_for(lambda: len(list(folder.glob("*.txt"))) >= 5, 180)
    began_s = time.monotonic()
    container.run("systemctl", "stop", "florence-daemon")
    assert container.show("Result", "ExecMainStatus", "ActiveState") == ["success", "0", "inactive"]
    done = {path.stem for path in folder.glob("*.txt")}
    record_property(
        "figure", f"stop with {len(pictures) - len(done)} waiting: exit code 0 after {time.monotonic() - began_s:.1f} s"
    )
    assert len(done) < len(pictures)
    assert done == {path.stem for path in folder.glob("*.tag")}
    container.run("systemctl", "start", "florence-daemon")
    wait_for(lambda: len(list(folder.glob("*.t*"))) == 2 * len(pictures), 300)


def test_install_over_an_installation_updates_it(container: Container, install: Callable[..., str]) -> None:
    install()
    (pid,) = container.show("MainPID")
    assert container.show("PrivateDevices") == ["yes"]
    assert "updated and restarted" in install(device="cuda")
    assert container.show("PrivateDevices", "DevicePolicy") == ["no", "closed"]
    install()
    assert container.show("MainPID") != [pid]
    assert container.show("PrivateDevices", "WatchdogUSec", "UnitFileState") == ["yes", "15s", "enabled"]
    assert container.show("NRestarts", "ActiveState") == ["0", "active"]


@pytest.mark.parametrize("again", ["mounted", "made"])
def test_folder_that_is_there_again_is_written_without_a_restart(
    container: Container, install: Callable[..., str], again: str
) -> None:
    there = ["mount", "-t", "tmpfs", "-o", "mode=0777", "disk", "/srv/disk"]
    gone = ["umount", "/srv/disk"]
    folder = container.root / "srv" / "disk"
    folder.mkdir()
    if again == "made":
        gone, there = ["rm", "-r", "/srv/disk"], ["mkdir", "--mode=0777", "/srv/disk"]
        folder.chmod(0o777)
    else:
        container.run(*there)
    install("/srv/disk")
    (pid,) = container.show("MainPID")
    wait_for_caption(drop(folder))
    container.run(*gone)
    container.run(*there)
    wait_for_caption(drop(folder, "b"))
    assert container.show("MainPID") == [pid]
    if again == "mounted":
        container.run("umount", "/srv/disk")


def test_folder_with_an_odd_name_that_may_not_be_written_is_named_with_the_remedy(
    container: Container, install: Callable[..., str]
) -> None:
    name = 'Ann\'s 100% "best" #1 $HOME\\pictures'
    folder = container.root / "home" / PERSON / "Pictures" / name
    folder.mkdir(parents=True)
    container.run("chmod", "0700", f"/home/{PERSON}")
    path = f"/home/{PERSON}/Pictures/{name}"
    said = install("'" + path.replace("'", "''") + "'")
    assert f"{path}: florence-daemon cannot write there" in said
    (remedy,) = (line for line in said.splitlines() if "setfacl" in line)
    container.run("sh", "-c", remedy)
    wait_for_caption(drop(folder))
    container.run("rm", "-r", f"/home/{PERSON}/Pictures")


def test_person_has_a_service_of_her_own(container: Container) -> None:
    home = container.root / "home" / PERSON
    container.person("mkdir", "-p", "Pictures/inbox", ".config")
    (home / ".config/florence-daemon.yaml").write_text(
        "model: {name: demo, engine: torch}\nfolders: [{path: ~/Pictures/inbox, settle_s: 0.2}]\n"
    )
    container.person("touch", "secret")
    said = container.person(*SERVICE, "install")
    assert ".config/systemd/user/florence-daemon.service: installed and started" in said.stdout
    assert said.stderr == "", "it got the whole sandbox"
    sidecar = drop(home / "Pictures/inbox")
    wait_for_caption(sidecar)
    assert sidecar.stat().st_uid == 1000
    (pid,) = container.show("MainPID", own=True)
    seen = os.listdir(container.root / "proc" / pid / "root" / "home" / PERSON)
    assert sorted(seen) == [".cache", ".config", ".local", "Pictures"]
    removed = container.person(*SERVICE, "uninstall").stdout
    assert "florence-daemon.service: removed" in removed
    assert "florence-daemon.yaml: stays" in removed
    assert container.show("LoadState", own=True) == ["not-found"]


def test_person_without_a_service_manager_is_told_what_to_do(container: Container) -> None:
    command = ["runuser", "-u", "nobody", "--", "env", "HOME=/tmp", *SERVICE, "install"]
    refused = container.run(*command, check=False)
    assert refused.returncode == 2
    assert "your service manager does not answer" in refused.stderr
    assert "loginctl enable-linger" in refused.stderr
    assert "--system needs root" in container.run(*command, "--system", check=False).stderr


def test_uninstall_removes_what_install_wrote_and_says_what_stays(
    container: Container, install: Callable[..., str]
) -> None:
    install(device="cuda")
    said = container.out(*SERVICE, "uninstall")
    assert said.splitlines() == [
        f"/{UNIT}: removed",
        f"/{UNIT}.d/gpu.conf: removed",
        f"/{UNIT}.d/impatient.conf: stays",
        f"/{CONFIG}: stays",
        "/var/lib/florence-daemon: stays",
        "/var/cache/florence-daemon: stays",
        "the account florence-daemon: stays",
    ]
    assert container.show("ActiveState", "LoadState") == ["inactive", "not-found"]
    assert "is not there, so nothing is removed" in container.out(*SERVICE, "uninstall")


def test_unit_of_somebody_else_is_left_alone(container: Container, install: Callable[..., str]) -> None:
    install()
    unit = container.root / UNIT
    written = unit.read_text()
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    for action in ("install", "uninstall"):
        refused = container.run(*SERVICE, action, check=False)
        assert refused.returncode == 2
        assert "was not written by this command" in refused.stderr
    assert unit.read_text() == "[Service]\nExecStart=/bin/true\n"
    unit.write_text(written)
