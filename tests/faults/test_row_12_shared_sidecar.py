"""`a.jpg` and `a.png` in one folder would share `a.txt`: none is lost, none overwritten, the other is listed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.pictures import is_captioned_rightly, jpeg, png
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon


def test_of_two_pictures_with_one_sidecar_one_has_it_and_the_other_is_listed(
    start: StartDaemon, folder: Path, figure: Figure
) -> None:
    (folder / "before.jpg").write_bytes(jpeg(1))
    (folder / "before.png").write_bytes(png())
    daemon = start()
    (folder / "jpg-first.jpg").write_bytes(jpeg(2))
    wait_for(lambda: is_captioned_rightly(folder / "jpg-first.jpg"), 60, "the caption")
    (folder / "jpg-first.png").write_bytes(png())
    (folder / "png-first.png").write_bytes(png())
    wait_for(lambda: is_captioned_rightly(folder / "png-first.png"), 60, "the caption")
    (folder / "png-first.jpg").write_bytes(jpeg(3))
    failures = wait_for(lambda: len(found := daemon.failures()) == 3 and found, 60, "three to be listed")
    assert all("txt" in reason and "same folder" in reason for reason in failures.values()), failures
    for stem in ("before", "jpg-first", "png-first"):
        pair = {folder / f"{stem}.jpg", folder / f"{stem}.png"}
        wait_for(lambda pair=pair: any(map(is_captioned_rightly, pair)), 60, f"the caption of one {stem}")
        captioned = {path for path in pair if is_captioned_rightly(path)}
        assert len(captioned) == 1, stem
        assert {str(path) for path in pair - captioned} <= set(failures), stem
    assert is_captioned_rightly(folder / "jpg-first.jpg")
    assert is_captioned_rightly(folder / "png-first.png")
    figure("3 pairs, in either order: 3 captioned, 3 listed with the reason, 0 overwritten")


def test_pair_that_is_taken_apart_is_captioned_both(start: StartDaemon, folder: Path) -> None:
    (folder / "a.jpg").write_bytes(jpeg(1))
    (folder / "a.png").write_bytes(png())
    daemon = start()
    wait_for(lambda: is_captioned_rightly(folder / "a.jpg") and daemon.failures(), 60, "one caption, one failure")
    (folder / "a.png").rename(folder / "b.png")
    wait_for(lambda: is_captioned_rightly(folder / "b.png"), 60, "the other's caption")
    wait_for(lambda: not daemon.failures(), 60, "the list of failures to be empty")
