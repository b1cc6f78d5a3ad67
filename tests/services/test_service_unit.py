"""The units: the files in systemd/, what `service print` shows, and what systemd's own checks say of both."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from florence_daemon.config import Config, FolderConfig, ModelConfig, ServerConfig
from florence_daemon.errors import UsageError
from florence_daemon.service_paths import holders, mount_points, outermost
from florence_daemon.service_plan import Machine, plan_service
from florence_daemon.service_unit import LOCAL_NETWORKS, UNIT, Service, gpu_drop_in, sandbox_properties, unit, word
from florence_daemon.systemd import Scope, choose_scope, refuse_if_impossible
from tests.conftest import run_command

ROOT = Path(__file__).parents[2]
PYTHON = "/opt/florence-daemon/.venv/bin/python"
MACHINE = Machine(
    python=PYTHON, program=("/opt/florence-daemon",), hub="/home/ann/.cache/huggingface", exists=lambda path: True
)
# Where `systemd-analyze security` may stand, in tenths: without a GPU, with one, and a person's own service, of which
# 0.4 is that its file names no user.
EXPOSURE, EXPOSURE_GPU, EXPOSURE_PERSON, EXPOSURE_PERSON_GPU = 10, 15, 16, 18

# pytest's own: what is noted as a figure gets into docs/reliability.md.
Note = Callable[[str, object], None]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")


def plan(*folders: str, is_system: bool = True, machine: Machine = MACHINE, **model: str) -> Service:
    config = Config(model=ModelConfig(**model), folders=tuple(FolderConfig(path=Path(each)) for each in folders))
    return plan_service(config, Path("/etc/florence-daemon/florence-daemon.yaml"), machine, is_system=is_system)


def given(folder: str, mounts: set[str] = frozenset(), missing: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
    return holders(folder, mounts, lambda path: path not in missing, lambda path: path)


def test_parent_is_given_so_that_a_folder_made_again_can_be_written() -> None:
    assert given("/srv/pictures") == {"/srv"}
    assert given("/home/ann/Pictures/inbox") == {"/home/ann/Pictures"}


def test_parent_of_a_mount_is_given_so_that_a_disk_mounted_again_is_seen() -> None:
    assert given("/mnt/nas/photos/2024", mounts={"/", "/mnt/nas"}) == {"/mnt"}
    assert given("/media/ann/stick", mounts={"/media/ann/stick"}) == {"/media/ann"}


def test_neither_the_system_nor_a_whole_home_is_given_for_one_folder() -> None:
    assert given("/photos", mounts={"/photos"}) == {"/photos"}
    assert given("/home/ann/Pictures") == {"/home/ann/Pictures"}
    assert given("/home/ann/Pictures/inbox", mounts={"/home"}) == {"/home/ann/Pictures"}


def test_folder_that_is_not_there_yet_is_given_by_the_nearest_above_that_is() -> None:
    assert given("/mnt/nas/a/b", missing={"/mnt/nas", "/mnt/nas/a"}) == {"/mnt"}


def test_link_and_what_it_leads_to_are_both_given(tmp_path: Path) -> None:
    (tmp_path / "disk" / "photos").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "photos").symlink_to(tmp_path / "disk" / "photos")
    found = holders(str(tmp_path / "links" / "photos"), frozenset(), os.path.exists, os.path.realpath)
    assert found == {str(tmp_path / "links"), str(tmp_path.resolve() / "disk")}


def test_mounts_are_those_of_now_and_of_fstab_with_their_spaces(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text("36 35 98:0 / /mnt/my\\040disk rw,noatime - ext4 /dev/sdb1 rw\n")
    (tmp_path / "fstab").write_text("# a comment /x y\nUUID=1 /mnt/usb ext4 noauto 0 2\nUUID=2 none swap sw 0 0\n\n")
    assert mount_points(tmp_path, tmp_path / "fstab") == {"/mnt/my disk", "/mnt/usb"}


def test_what_is_inside_another_is_not_named_twice() -> None:
    assert outermost(["/srv/a", "/srv", "/srv a", "/srv/b", "/srv"]) == ("/srv", "/srv a")


def test_names_are_written_as_systemd_reads_them() -> None:
    assert word("/srv/plain") == "/srv/plain"
    assert word('/srv/100% "my" pictures') == '"/srv/100%% \\"my\\" pictures"'
    assert word("/srv/2024:10") == '"/srv/2024:10"'


def test_percent_sign_of_a_name_is_not_taken_for_systemds_own() -> None:
    properties = sandbox_properties(plan("/home/ann/100%taken/inbox", is_system=False), "/run/user/1000")
    assert "BindPaths=-/home/ann/100%taken" in properties
    assert "BindReadOnlyPaths=/run/user/1000/systemd/notify" in properties


def test_home_is_empty_for_the_service_but_for_what_was_named() -> None:
    machine = replace(MACHINE, python="/home/ann/f/.venv/bin/python", program=("/home/ann/f", "/usr"))
    text = unit(plan("/home/ann/Pictures/inbox", "/mnt/a/b", machine=machine))
    assert "ProtectHome=tmpfs\n" in text
    assert "BindPaths=-/home/ann/Pictures\n" in text
    assert "BindReadOnlyPaths=-/home/ann/f\n" in text
    assert "ReadWritePaths=-/mnt/a\n" in text


def test_own_service_keeps_models_and_state_where_the_person_has_them() -> None:
    service = plan(is_system=False)
    assert "Environment=HF_HOME=/home/ann/.cache/huggingface\n" in unit(service)
    assert MACHINE.hub in service.own
    assert all(line not in unit(service) for line in ("User=", "StateDirectory=", "IPAddressDeny="))


def test_system_service_reaches_no_network_that_it_does_not_serve() -> None:
    def reached(host: str) -> str:
        config = Config(server=ServerConfig(host=host, token="none"))
        text = unit(plan_service(config, Path("/etc/f.yaml"), MACHINE, is_system=True))
        return text.split("IPAddressDeny=any\nIPAddressAllow=")[1].splitlines()[0]

    assert reached("127.0.0.1") == reached("::1") == reached("localhost") == "localhost"
    assert reached("0.0.0.0").startswith("localhost 10.0.0.0/8 ")


def test_system_service_reaches_the_servers_that_it_asks_and_needs_no_gpu_for_that() -> None:
    with_gpu = Machine(PYTHON, (), "/h", has_gpu=True)

    def networks(*servers: str) -> str:
        config = Config(model=ModelConfig(server=servers), server=ServerConfig(port=1))
        service = plan_service(config, Path("/etc/f.yaml"), with_gpu, is_system=True)
        assert not service.has_gpu
        return " ".join(service.networks)

    assert networks("http://127.0.0.1:54880", "http://localhost:5") == ""
    home = " ".join(LOCAL_NETWORKS)
    assert networks("http://gpu-box:54880") == networks("http://192.168.1.7:1", "https://[fd00::1]") == home
    assert networks("http://203.0.113.7:1", "https://[2001:db8::1]:2") == f"{home} 203.0.113.7 2001:db8::1"


def test_gpu_is_let_in_where_the_configuration_wants_one() -> None:
    with_gpu = Machine(PYTHON, (), "/h", has_gpu=True, groups=("render",))
    assert [plan(device=device).has_gpu for device in ("auto", "cpu", "cuda", "cuda:1")] == [False, False, True, True]
    assert [plan(device=device, machine=with_gpu).has_gpu for device in ("auto", "cpu", "all")] == [True, False, True]
    assert [plan(device=devices).has_gpu for devices in (("cpu", "cuda:1"), ("cpu", "cpu"), "all")] == [
        True,
        False,
        False,
    ]
    assert "SupplementaryGroups=render\n" in gpu_drop_in(plan(machine=with_gpu))


def test_without_namespaces_the_filters_stay() -> None:
    text = unit(plan(is_system=False).without_namespaces())
    assert "ProtectSystem" not in text
    assert "SystemCallFilter=@system-service\n" in text


def test_root_gets_the_systems_service_and_everybody_else_their_own() -> None:
    assert choose_scope(None, 0) == Scope(is_system=True)
    assert choose_scope(None, 1000) == Scope(is_system=False)
    assert choose_scope(False, 0) == Scope(is_system=False)


@pytest.mark.parametrize(
    ("platform", "is_booted", "euid", "reason"),
    [
        ("darwin", False, 0, "macOS has no systemd: let launchd run"),
        ("linux", False, 0, "systemd does not run this machine"),
        ("linux", True, 1000, "--system needs root: put sudo before it"),
    ],
)
def test_where_it_cannot_be_it_says_what_to_do(platform: str, is_booted: bool, euid: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        refuse_if_impossible(Scope(is_system=True), platform, euid, is_booted=is_booted)


@linux_only
def test_wrong_configuration_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("model: {num_beams: 0}")
    for action in ("print", "install"):
        done = run_command("service", action, "--config", str(tmp_path / "wrong.yaml"), home=tmp_path)
        assert done.returncode == (78 if action == "print" or Path("/run/systemd/system").is_dir() else 2)
        assert (
            "wrong.yaml:1: model.num_beams: 0 is out of range" in done.stderr or "systemd does not run" in done.stderr
        )


@linux_only
def test_files_in_systemd_are_what_the_template_makes() -> None:
    found = importlib.util.spec_from_file_location("write_units", ROOT / "tools" / "write_units.py")
    assert found and found.loader
    tool = importlib.util.module_from_spec(found)
    found.loader.exec_module(tool)
    for file, text in tool.example_units().items():
        assert file.read_text(encoding="utf-8") == text, "it is old: run .venv/bin/python tools/write_units.py"


def write_files(directory: Path) -> None:
    """The units of systemd/, with a Python that is there: systemd looks whether it is."""
    shutil.copytree(ROOT / "systemd", directory, dirs_exist_ok=True)
    for file in directory.rglob("*.service"):
        file.write_text(file.read_text().replace(PYTHON, sys.executable))


def write_printed(directory: Path, *options: str, config: str) -> None:
    """What `service print` shows, taken apart into its files."""
    directory.mkdir(exist_ok=True)
    (directory / "florence-daemon.yaml").write_text(config)
    done = run_command(
        "service", "print", "--config", str(directory / "florence-daemon.yaml"), *options, home=directory
    )
    assert done.returncode == 0, done.stderr
    for part in done.stdout.removeprefix("# /").split("\n# /"):
        name, text = part.split("\n", 1)
        file = directory / name[name.index(UNIT) :]
        file.parent.mkdir(exist_ok=True)
        file.write_text(text + "\n")


def analyze(*arguments: str, runtime: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
        check=False,
    )


def assert_systemd_agrees(file: Path, tenths: int, *options: str) -> str:
    """Every line is understood, and the exposure is at most so much. Returns the exposure."""
    verified = analyze("verify", "--recursive-errors=no", *options, str(file), runtime=file.parent)
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stderr
    rated = analyze("security", "--offline=true", "--no-pager", f"--threshold={tenths}", str(file), runtime=file.parent)
    assert rated.returncode == 0, rated.stdout[-200:] + rated.stderr
    return rated.stdout.rsplit(".service: ", 1)[1].split()[0]


@needs_systemd
def test_units_in_systemd_are_right_and_hardened(tmp_path: Path, record_property: Note) -> None:
    write_files(tmp_path)
    with_gpu = assert_systemd_agrees(tmp_path / UNIT, EXPOSURE_GPU)
    own = assert_systemd_agrees(tmp_path / "user" / UNIT, EXPOSURE_PERSON, "--user")
    shutil.rmtree(tmp_path / f"{UNIT}.d")
    without = assert_systemd_agrees(tmp_path / UNIT, EXPOSURE)
    record_property("figure", f"systemd-analyze security: {without}, with a GPU {with_gpu}, a person's own {own}")


@needs_systemd
def test_what_is_printed_is_right_and_hardened(tmp_path: Path) -> None:
    names = ("/srv/Ann's 100% #1 pictures", "/home/ann/2024:10/in", f"{tmp_path}/in")
    odd = json.dumps({"model": {"device": "cpu"}, "folders": [{"path": name} for name in names]})
    write_printed(tmp_path / "cpu", "--system", config=odd)
    assert_systemd_agrees(tmp_path / "cpu" / UNIT, EXPOSURE)
    write_printed(tmp_path / "gpu", "--system", config="{model: {device: cuda}, server: {host: 0.0.0.0, token: none}}")
    assert_systemd_agrees(tmp_path / "gpu" / UNIT, EXPOSURE_GPU)
    write_printed(tmp_path / "own", "--user", config=odd)
    assert_systemd_agrees(tmp_path / "own" / UNIT, EXPOSURE_PERSON, "--user")
    write_printed(tmp_path / "own-gpu", "--user", config="model: {device: cuda}")
    assert_systemd_agrees(tmp_path / "own-gpu" / UNIT, EXPOSURE_PERSON_GPU, "--user")


@needs_systemd
def test_check_would_find_a_misspelt_line_and_a_weaker_unit(tmp_path: Path) -> None:
    write_files(tmp_path)
    gpu = tmp_path / f"{UNIT}.d" / "gpu.conf"
    gpu.write_text(gpu.read_text() + "WatchdogSecs=1\nProtectSystem=no\nCapabilityBoundingSet=~\nPrivateUsers=no\n")
    assert analyze("verify", "--recursive-errors=no", str(tmp_path / UNIT), runtime=tmp_path).returncode != 0
    rated = analyze("security", "--offline=true", f"--threshold={EXPOSURE_GPU}", str(tmp_path / UNIT), runtime=tmp_path)
    assert rated.returncode != 0
