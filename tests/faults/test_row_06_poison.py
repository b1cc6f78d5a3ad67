"""Row 6: pictures that are too large, cut off, or bring the engine process down; the demo model."""

from __future__ import annotations

import json
import time
from pathlib import Path

from PIL import Image

from benchmarks.faults.pictures import count_sidecars, jpeg, write_jpegs
from benchmarks.faults.process import DaemonProcess, wait_for, watching
from tests.conftest import Figure
from tests.engine.poisoned_child import HANG, HOG, SEGFAULT

GOOD = 100
LIMITS = {"name": "demo", "decode_limit_s": 3.0, "memory_limit_mb": 1000}


def write_bad(folder: Path) -> None:
    """Two that are refused, and three that end the process: a decoder that crashes, one that hangs, a memory hog."""
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "cut-off.jpg").write_bytes(jpeg(1)[:-200])
    for name, marker in (("crash", SEGFAULT), ("hog", HOG), ("hang", HANG)):
        (folder / f"{name}.jpg").write_bytes(jpeg(1) + marker)


def test_bad_pictures_cost_the_good_ones_nothing(tmp_path: Path, folder: Path, figure: Figure) -> None:
    write_jpegs(folder, range(GOOD // 2))
    write_bad(folder)
    write_jpegs(folder, range(GOOD // 2, GOOD))
    config = json.dumps(json.loads(watching(folder)) | {"model": LIMITS})
    started_s = time.monotonic()
    with DaemonProcess(tmp_path / "home", config, module="tests.faults.poisoned_daemon") as daemon:
        wait_for(lambda: len(daemon.failures()) == 5 and count_sidecars(folder) >= GOOD, 240, "every picture to end")
        attempts = {Path(each["path"]).stem: each["attempts"] for each in daemon.status()["failures"]}
        reasons = {Path(path).stem: reason for path, reason in daemon.failures().items()}
        assert daemon.process.poll() is None
    assert count_sidecars(folder) == GOOD
    assert {name: attempts[name] for name in ("crash", "hog", "hang")} == {"crash": 3, "hog": 3, "hang": 3}
    assert "too large: 400000000 pixels" in reasons["bomb"]
    assert "truncated" in reasons["cut-off"]
    assert "killed by signal 11" in reasons["crash"]
    assert "model.memory_limit_mb allows 1,000" in reasons["hog"]
    assert "model.decode_limit_s" in reasons["hang"]
    seconds = time.monotonic() - started_s
    figure(
        f"{GOOD} of {GOOD} good ones captioned in {seconds:.0f} s beside a bomb, a cut-off one, and "
        "three that brought the engine down 3 times each; the daemon was not restarted"
    )
