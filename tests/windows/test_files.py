"""Files on Windows, under Wine: what only Windows does to them, and a backfill over names that are hard there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.faults.pictures import jpeg, png
from tests.windows.wine import BENCH, Windows, seen_from_windows

ROOT = Path(__file__).parents[2]
# Everyday tests that hold on Windows too, and run quickly.
EVERYDAY = ["tests/windows/on_windows.py", "tests/folders/test_sidecars.py", "tests/test_queue.py"]
# What ends by showing that case counts, as it does on Linux.
LINUX_ONLY = "test_owner_of_a_sidecar_is_found_where_the_file_system_ignores_case"


def run_pytest(windows: Windows, *arguments: str) -> str:
    home = seen_from_windows(ROOT)
    paths = [str(home / argument) for argument in arguments]
    result = windows.python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(home / "pyproject.toml"),
        "-k",
        f"not {LINUX_ONLY}",
        *paths,
        timeout_s=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_tests_pass_on_windows(windows: Windows) -> None:
    found = re.search(r"(\d+) passed", run_pytest(windows, *EVERYDAY))
    assert found is not None
    assert int(found[1]) >= 30


@pytest.fixture
def pictures(windows: Windows) -> Path:
    folder = windows.drive_c / "backfilled"
    folder.mkdir()
    return folder


def test_backfill_meets_hard_names(windows: Windows, pictures: Path) -> None:
    deep = pictures.joinpath(*["directory-of-thirty-characters"] * 10)
    deep.mkdir(parents=True)
    (deep / "deep.jpg").write_bytes(jpeg(1))
    (pictures / "ümläut 漢字 🎨.jpg").write_bytes(jpeg(2))
    (pictures / "UPPER.JPG").write_bytes(jpeg(3))
    (pictures / "shared.jpg").write_bytes(jpeg(4))
    (pictures / "SHARED.png").write_bytes(png())
    (pictures / "kept.jpg").write_bytes(jpeg(5))
    for ending in ("TXT", "TAG"):
        (pictures / f"KEPT.{ending}").write_text("a person's\n")
    result = windows.python(
        "-m", "benchmarks.faults.fake_engine", "backfill", "--json", "--model", "demo", r"C:\backfilled"
    )
    assert result.returncode == 1, result.stdout + result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    failed = {line["image"]: line["error"] for line in lines if "error" in line}
    assert len(failed) == 1
    assert "in the same folder; rename one of the two" in next(iter(failed.values()))
    for path in (deep / "deep.txt", pictures / "ümläut 漢字 🎨.txt", pictures / "UPPER.txt"):
        assert path.read_text().startswith("more_detailed_caption of ")
    assert sorted(path.name.lower() for path in pictures.glob("[sS]*.t*")) == ["shared.tag", "shared.txt"]
    assert (pictures / "KEPT.TXT").read_text() == "a person's\n"
    assert not (pictures / "kept.txt").exists()


def test_check_config_finds_the_machines_settings(windows: Windows) -> None:
    file = windows.drive_c / "ProgramData" / "florence-daemon" / "florence-daemon.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_bytes() if file.exists() else None
    try:
        file.write_bytes("\ufefffolders:\r\n  - path: C:\\Bilder für später\r\n".encode())
        result = windows.python("-m", "florence_daemon", "check-config", environment={"PYTHONUTF8": "1"})
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(r"C:\ProgramData\florence-daemon\florence-daemon.yaml: ok")
        assert r"C:\Bilder für später: MORE_DETAILED_CAPTION to .txt" in result.stdout
    finally:
        file.unlink()
        if before is not None:
            file.write_bytes(before)


def test_batch_file_hands_its_arguments_over(windows: Windows) -> None:
    home = windows.drive_c / "set-up"
    (home / "windows").mkdir(parents=True)
    shutil.copy(ROOT / "windows" / "vision-server.bat", home / "windows")
    shutil.copytree(BENCH / "python", home / ".venv" / "Scripts")
    for name in (home / "constraints.txt", home / ".venv" / "installed"):
        name.write_text("the same, so nothing is installed\n")
    batch = r"C:\set-up\windows\vision-server.bat"
    result = windows.run("cmd", "/c", batch, "--set-up")
    assert (result.returncode, result.stderr) == (0, "")
    result = windows.run("cmd", "/c", batch, "--config", r"C:\no such.yaml")
    assert result.returncode == 78, result.stdout + result.stderr
    assert r"C:\no such.yaml: there is no such configuration file" in result.stderr
