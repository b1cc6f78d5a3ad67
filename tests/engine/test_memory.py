"""How many questions fit into memory, with a machine's files written by the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from florence_daemon.engine.memory import CPU_BATCH, GPU_BATCH, all_ram_bytes, choose_batch, free_ram_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("device", "free_bytes", "question_bytes", "batch"),
    [
        ("cpu", 64 * GIB, GIB // 100, CPU_BATCH),
        ("cuda:0", 64 * GIB, GIB // 100, GPU_BATCH),
        ("cuda:0", 8 * GIB, GIB // 4, 16),
        ("cpu", 2 * GIB, GIB // 4, 4),
        ("cpu", 0, GIB, 1),
        ("mps", None, GIB, CPU_BATCH),
    ],
)
def test_questions_take_half_of_what_is_free(device: str, free_bytes: int, question_bytes: int, batch: int) -> None:
    assert choose_batch(0, device, free_bytes, question_bytes) == batch
    assert choose_batch(3, device, free_bytes, question_bytes) == 3, "what a person sets holds"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  16777216 kB\nMemAvailable:    8388608 kB\n")
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def free(machine: Path) -> int | None:
    return free_ram_bytes(machine / "proc", machine / "cgroup")


def write_group(directory: Path, names: tuple[str, str], limit: object, used: int, files: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / names[0]).write_text(f"{limit}\n")
    (directory / names[1]).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")


def test_without_groups_the_machine_says_what_is_free(machine: Path) -> None:
    assert free(machine) == 8 * GIB


def test_tightest_of_the_groups_above_counts_and_read_files_count_as_free(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("0::/system.slice/florence.service\n")
    names = ("memory.max", "memory.current")
    write_group(machine / "cgroup" / "system.slice" / "florence.service", names, "max", GIB, 0)
    write_group(machine / "cgroup" / "system.slice", names, 3 * GIB, 2 * GIB, GIB // 2)
    assert free(machine) == 3 * GIB // 2


def test_whole_memory_is_the_machines_or_that_of_the_tightest_group(machine: Path) -> None:
    assert all_ram_bytes(machine / "proc", machine / "cgroup") == 16 * GIB
    (machine / "proc" / "self" / "cgroup").write_text("0::/system.slice/florence.service\n")
    names = ("memory.max", "memory.current")
    write_group(machine / "cgroup" / "system.slice", names, 3 * GIB, 2 * GIB, 0)
    assert all_ram_bytes(machine / "proc", machine / "cgroup") == 3 * GIB


def test_groups_of_version_1_count_too(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("3:cpu:/x\n7:memory:/docker/abc\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_group(machine / "cgroup" / "memory", names, 2 * GIB, GIB, 0)  # a container sees its own group at the root
    assert free(machine) == GIB


def test_machine_that_does_not_say_is_unknown(tmp_path: Path) -> None:
    assert free_ram_bytes(tmp_path, tmp_path) is None
    assert all_ram_bytes(tmp_path, tmp_path) is None
