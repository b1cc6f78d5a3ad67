"""What engines of one machine share: its cores, and what one of them makes for all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from florence_daemon.engine import devices, sharing
from florence_daemon.engine.devices import count_gpus
from florence_daemon.engine.sharing import alone_at, own_threads, part_of, take_part


def lay_out(directory: Path, cores: dict[int, tuple[int, int]]) -> None:
    """Describe processors as Linux does. cores: the socket and the core of each."""
    for cpu, (socket, core) in cores.items():
        topology = directory / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{socket}\n")
        (topology / "core_id").write_text(f"{core}\n")


def test_threads_of_a_core_and_cores_of_a_socket_stay_together(tmp_path: Path) -> None:
    lay_out(tmp_path, {cpu: (cpu // 2 % 2, cpu % 2) for cpu in range(8)})
    parts = [part_of(set(range(8)), part, 2, tmp_path) for part in range(2)]
    assert parts == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert [part_of(set(range(8)), part, 4, tmp_path) for part in range(4)] == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]


def test_every_core_that_may_be_used_has_one_engine_and_no_engine_is_without(tmp_path: Path) -> None:
    allowed = {1, 3, 4, 7, 9}
    parts = [part_of(allowed, part, 2, tmp_path) for part in range(2)]
    assert parts[0] | parts[1] == allowed
    assert parts[0] & parts[1] == set()
    assert [part_of({5}, part, 3, tmp_path) for part in range(3)] == [{5}] * 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux keeps a process to some cores")
def test_process_takes_its_part_before_libraries_count_cores() -> None:
    script = (
        "import os\nfrom florence_daemon.engine.sharing import take_part\n"
        "take_part(0, 1)\nall_cores = os.sched_getaffinity(0)\n"
        "take_part(0, len(all_cores))\nprint(len(all_cores), len(os.sched_getaffinity(0)))\n"
        "import torch\nprint(torch.get_num_threads())"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(len(os.sched_getaffinity(0))), said[1], said[1]]
    assert int(said[1]) <= max(1, len(os.sched_getaffinity(0)) // 2)


def test_an_engine_alone_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    take_part(0, 1)
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("said", "threads"), [("1", 1), ("2", 2), ("4", None), ("64", None), ("0", None), ("many", None), ("", None)]
)
def test_an_engine_alone_takes_no_more_than_it_was_given(
    monkeypatch: pytest.MonkeyPatch, said: str, threads: int | None
) -> None:
    """Ray starts several on one machine, each with its number of cores, and tells each by this variable."""
    monkeypatch.setattr(sharing, "allowed_processors", lambda: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert own_threads(1) == threads


def test_what_one_alone_may_do_waits_for_the_other(tmp_path: Path) -> None:
    done: list[str] = []

    def second() -> None:
        with alone_at(tmp_path / "state" / "lock"):
            done.append("second")

    with alone_at(tmp_path / "state" / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        script = (
            "import sys\nfrom pathlib import Path\nfrom florence_daemon.engine.sharing import alone_at\n"
            "print('there', flush=True)\nwith alone_at(Path(sys.argv[1])): print('in', flush=True)"
        )
        third = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "state" / "lock")], stdout=subprocess.PIPE, text=True
        )
        assert third.stdout is not None
        assert third.stdout.readline() == "there\n"
        done.append("first")
    waiting.join()
    assert third.stdout.readline() == "in\n"
    third.communicate()
    assert third.returncode == 0
    assert done == ["first", "second"]


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ASK_CUDA", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'].count(',') + 1)")
    assert count_gpus({**os.environ, "CUDA_VISIBLE_DEVICES": "2,3"}, tmp_path) == 2
    monkeypatch.setattr(devices, "ASK_CUDA", "raise OSError('libcuda.so.1: no such file')")
    assert count_gpus(dict(os.environ), tmp_path) == 0


def test_gpus_of_amd_are_counted_as_linux_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ASK_CUDA", "raise OSError('libcuda.so.1: no such file')")
    for number, units in enumerate((0, 304, 304, 304)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(f"cpu_cores_count 0\nsimd_count {units}\n")
    plain = {name: value for name, value in os.environ.items() if name not in devices.AMD_VISIBLE}
    assert count_gpus(plain, tmp_path) == 3
    assert count_gpus({**plain, "HIP_VISIBLE_DEVICES": "0,2"}, tmp_path) == 2
