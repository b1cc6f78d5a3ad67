"""From a job to its sidecars: every job ends, with a result or with a reason."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from florence_daemon.config import FolderConfig, ModelConfig
from florence_daemon.config_output import DEFAULT_OUTPUTS, OutputConfig
from florence_daemon.engine.protocol import Answer, Ask
from florence_daemon.errors import (
    CheckpointError,
    EngineCrashed,
    PictureError,
    SidecarError,
    Stopping,
    TruncatedPicture,
)
from florence_daemon.folders import atomic
from florence_daemon.folders.asking import asks_of
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Needs
from florence_daemon.folders.records import LONGEST_RETRY_S, Making, digest_of, making_of
from florence_daemon.folders.scan import Listing, list_directories
from florence_daemon.folders.settle import stamp_of
from florence_daemon.intake import FolderIntake
from florence_daemon.logs import printable
from florence_daemon.queue import Image, Job, JobQueue, Kind
from florence_daemon.worker import PAUSE_S, Counts, Worker
from tests.conftest import AtOnce, FakeEngine, done


class WatchedFolders:
    """Notes what a worker tells the folders."""

    def __init__(self) -> None:
        self.touched: list[tuple[str, float]] = []
        self.paused: dict[str, str] = {}

    def touch(self, path: str, delay_s: float = 0.0) -> None:
        self.touched.append((path, delay_s))

    def pause(self, path: str, reason: str) -> None:
        self.paused[path] = reason

    def is_paused(self, path: str) -> bool:
        return bool(self.paused)


class Setup:
    """A worker with everything real but the engine and the clock."""

    def __init__(self, engine: FakeEngine, directory: Path) -> None:
        self.queue = JobQueue(4)
        self.now_s = 1000.0
        self.ledger = Ledger(clock=lambda: self.now_s)
        self.folders = WatchedFolders()
        self.model = ModelConfig(name="demo")
        self.worker = Worker(
            self.queue,
            engine,
            self.ledger,
            self.makes,
            folders=self.folders,
            clock=lambda: self.now_s,
            pool=AtOnce(),
        )
        self.intake = FolderIntake(self.queue, self.ledger, Needs(self.ledger, self.makes))
        self.folder = FolderConfig(path=directory)
        self.image = directory / "a.jpg"
        self.image.write_bytes(b"picture")

    def makes(self, output: OutputConfig) -> Making:
        return making_of(self.model, output)

    def lacking(self) -> list[str]:
        (listing,) = list_directories(self.folder)
        return list(self.intake.lacking(self.folder, listing))

    def submit(self, path: Path | None = None) -> None:
        name = str(path or self.image)
        stamp = stamp_of(name)
        assert stamp is not None
        self.intake.submit(self.folder, [(name, stamp)])

    def put(self, kind: Kind, name: str = "a.jpg") -> Job:
        path = str(self.image.with_name(name))
        job = Job(kind, path, asks_of(DEFAULT_OUTPUTS), Image(path, DEFAULT_OUTPUTS, None))
        self.queue.put(job)
        return job

    def hand_over_all(self) -> None:
        while self.worker.run_once(0):
            pass

    def reasons(self) -> dict[str, str]:
        return {os.path.basename(failure.path): failure.reason for failure in self.ledger.failures()}


@pytest.fixture
def setup(engine: FakeEngine, tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(engine, tmp_path)
    yield setup
    setup.ledger.close()


def test_all_outputs_of_an_image_are_one_request(setup: Setup, engine: FakeEngine) -> None:
    setup.submit()
    assert setup.worker.run_once(0)
    assert [[ask.prompt for ask in asks] for _, asks, _ in engine.asked] == [
        ["<MORE_DETAILED_CAPTION>", "<GENERATE_TAGS>"]
    ]
    assert setup.image.with_suffix(".txt").read_text() == "answer to MORE_DETAILED_CAPTION\n"
    assert setup.image.with_suffix(".tag").read_text() == "answer to GENERATE_TAGS\n"
    assert setup.queue.is_idle()


def test_only_what_is_missing_is_asked(setup: Setup, engine: FakeEngine) -> None:
    setup.image.with_suffix(".txt").write_text("mine")
    setup.submit()
    setup.worker.run_once(0)
    assert [ask.prompt for ask in engine.asked[0][1]] == ["<GENERATE_TAGS>"]
    assert setup.image.with_suffix(".txt").read_text() == "mine"


def test_several_prompts_fill_one_file_and_what_two_outputs_want_is_asked_once(
    setup: Setup, engine: FakeEngine
) -> None:
    both = OutputConfig(prompts=("CAPTION", "GENERATE_TAGS"), ext="txt", template="{tags} ({caption})")
    setup.folder = attrs.evolve(setup.folder, outputs=(both, OutputConfig(prompt="GENERATE_TAGS", ext="tag")))
    setup.submit()
    setup.worker.run_once(0)
    assert [ask.prompt for ask in engine.asked[0][1]] == ["<CAPTION>", "<GENERATE_TAGS>"]
    assert setup.image.with_suffix(".txt").read_text() == "answer to GENERATE_TAGS (answer to CAPTION)\n"
    assert setup.image.with_suffix(".tag").read_text() == "answer to GENERATE_TAGS\n"


def test_search_settings_and_text_of_an_output_reach_the_engine(setup: Setup, engine: FakeEngine) -> None:
    outputs = (
        OutputConfig(prompt="CAPTION", ext="a", num_beams=1, max_new_tokens=20),
        OutputConfig(prompt="CAPTION", ext="b"),
        OutputConfig(prompt="REGION_TO_CATEGORY", text="<loc_1><loc_2><loc_3><loc_4>", ext="c"),
    )
    setup.folder = attrs.evolve(setup.folder, outputs=outputs)
    setup.submit()
    setup.worker.run_once(0)
    assert [(ask.text, ask.num_beams, ask.max_new_tokens) for ask in engine.asked[0][1]] == [
        (None, 1, 20),
        (None, None, None),
        ("<loc_1><loc_2><loc_3><loc_4>", None, None),
    ]
    assert {path.suffix for path in setup.image.parent.iterdir()} == {".jpg", ".a", ".b", ".c"}


def use_append(setup: Setup, overwrite: str = "append") -> Path:
    """Have the caption added to what a person wrote; return that file."""
    output = OutputConfig(prompt="CAPTION", ext="txt", overwrite=overwrite)
    setup.folder = attrs.evolve(setup.folder, outputs=(output,))
    sidecar = setup.image.with_suffix(".txt")
    sidecar.write_text("mine\n")
    return sidecar


def caption_all(setup: Setup) -> None:
    """What a scan would do."""
    for name in setup.lacking():
        setup.submit(setup.image.with_name(name))
    setup.hand_over_all()


@pytest.mark.parametrize(
    ("overwrite", "expected"),
    [("append", "mine, answer to CAPTION\n"), ("prepend", "answer to CAPTION, mine\n"), ("never", "mine\n")],
)
def test_text_is_added_to_what_a_person_wrote_once(setup: Setup, overwrite: str, expected: str) -> None:
    sidecar = use_append(setup, overwrite)
    for _ in range(3):
        caption_all(setup)
        assert sidecar.read_text() == expected
    assert setup.reasons() == {}


def test_text_is_not_added_again_when_the_ledger_was_lost_or_a_person_edited_it(
    setup: Setup, engine: FakeEngine
) -> None:
    sidecar = use_append(setup)
    caption_all(setup)
    setup.ledger.forget(str(setup.image))
    caption_all(setup)
    assert sidecar.read_text() == "mine, answer to CAPTION\n"
    assert len(engine.asked) == 2
    sidecar.write_text("mine, and what the model said, edited\n")
    caption_all(setup)
    assert sidecar.read_text() == "mine, and what the model said, edited\n"
    assert len(engine.asked) == 2


def test_file_that_was_added_to_is_a_persons_for_ever(setup: Setup) -> None:
    sidecar = use_append(setup)
    caption_all(setup)
    setup.model = ModelConfig(name="another")
    caption_all(setup)
    setup.folder = attrs.evolve(setup.folder, overwrite="stale", outputs=(OutputConfig(prompt="CAPTION", ext="txt"),))
    caption_all(setup)
    assert sidecar.read_text() == "mine, answer to CAPTION\n"


def test_another_prompt_is_added_to_what_the_first_one_wrote(setup: Setup) -> None:
    sidecar = setup.image.with_suffix(".txt")
    for prompt in ("CAPTION", "GENERATE_TAGS", "GENERATE_TAGS"):
        setup.folder = attrs.evolve(setup.folder, overwrite="append", outputs=(OutputConfig(prompt=prompt, ext="txt"),))
        caption_all(setup)
    assert sidecar.read_text() == "answer to CAPTION, answer to GENERATE_TAGS\n"


def test_text_is_not_added_to_a_file_that_changes_meanwhile_but_soon_after(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar = use_append(setup)
    write = atomic.Directory.write

    def edit_and_write(*arguments: Any) -> bool:
        sidecar.write_text("mine, edited\n")
        return write(*arguments)

    monkeypatch.setattr(atomic.Directory, "write", edit_and_write)
    caption_all(setup)
    assert sidecar.read_text() == "mine, edited\n"
    assert setup.reasons() == {"a.jpg": "a.txt changed while something was added to it; nothing was written"}
    monkeypatch.undo()
    setup.now_s += 10
    caption_all(setup)
    assert sidecar.read_text() == "mine, edited, answer to CAPTION\n"
    assert setup.reasons() == {}


def test_file_that_comes_just_before_it_would_be_written_is_added_to_at_the_next_look(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar = use_append(setup)
    sidecar.unlink()
    write = atomic.Directory.write

    def come_and_write(*arguments: Any) -> bool:
        sidecar.write_text("mine\n")
        return write(*arguments)

    monkeypatch.setattr(atomic.Directory, "write", come_and_write)
    caption_all(setup)
    assert sidecar.read_text() == "mine\n"
    monkeypatch.undo()
    for _ in range(2):
        caption_all(setup)
        assert sidecar.read_text() == "mine, answer to CAPTION\n"


def test_link_is_not_added_to_and_the_model_is_not_asked_again_for_it(setup: Setup, engine: FakeEngine) -> None:
    sidecar = use_append(setup)
    target = setup.image.with_suffix(".other")
    sidecar.rename(target)
    sidecar.symlink_to(target)
    caption_all(setup)
    assert target.read_text() == "mine\n"
    assert sidecar.is_symlink()
    assert "cannot be read, so nothing was added" in setup.reasons()["a.jpg"]
    setup.now_s += 10 * LONGEST_RETRY_S
    caption_all(setup)
    assert len(engine.asked) == 1


def test_file_that_cannot_be_added_to_keeps_no_other_from_being_written(setup: Setup, engine: FakeEngine) -> None:
    sidecar = use_append(setup)
    sidecar.write_bytes(b"caf\xe9\n")
    tags = OutputConfig(prompt="GENERATE_TAGS", ext="tag")
    setup.folder = attrs.evolve(setup.folder, outputs=(*setup.folder.outputs, tags))
    caption_all(setup)
    assert sidecar.read_bytes() == b"caf\xe9\n"
    assert setup.image.with_suffix(".tag").exists()
    assert "not UTF-8" in setup.reasons()["a.jpg"]


def test_answer_that_options_leave_nothing_of_is_listed_and_not_asked_for_again(
    setup: Setup, engine: FakeEngine
) -> None:
    output = OutputConfig(prompt="GENERATE_TAGS", ext="tag", exclude_tags=("*",))
    setup.folder = attrs.evolve(setup.folder, outputs=(output,))
    caption_all(setup)
    setup.now_s += 10 * LONGEST_RETRY_S
    caption_all(setup)
    assert len(engine.asked) == 1
    assert "leave nothing of the answer" in setup.reasons()["a.jpg"]


def test_sidecar_that_appears_during_the_work_stays(setup: Setup, engine: FakeEngine) -> None:
    engine.on_submit = lambda: setup.image.with_suffix(".txt").write_text("mine") and None
    setup.submit()
    setup.worker.run_once(0)
    assert setup.image.with_suffix(".txt").read_text() == "mine"
    assert setup.image.with_suffix(".tag").exists()


def test_picture_whose_sidecars_all_came_meanwhile_is_not_counted(setup: Setup, engine: FakeEngine) -> None:
    def caption_by_hand() -> None:
        for output in DEFAULT_OUTPUTS:
            setup.image.with_suffix(output.ending).write_text("mine")

    engine.on_submit = caption_by_hand
    setup.submit()
    setup.worker.run_once(0)
    assert setup.worker.counts.captioned == 0
    assert setup.image.with_suffix(".txt").read_text() == "mine"


def test_image_is_queued_once_however_often_it_is_found(setup: Setup, engine: FakeEngine) -> None:
    for _ in range(20):
        setup.submit()
    while setup.worker.run_once(0):
        pass
    assert len(engine.asked) == 1


def test_image_that_failed_is_listed_and_not_tried_again_as_it_is(setup: Setup, engine: FakeEngine) -> None:
    engine.error = PictureError(f"{setup.image}: is not a picture")
    setup.submit()
    setup.worker.run_once(0)
    setup.now_s += 10 * LONGEST_RETRY_S
    assert setup.lacking() == []
    setup.submit()
    assert not setup.worker.run_once(0)
    assert setup.reasons() == {"a.jpg": "is not a picture"}
    assert setup.folders.touched == []


def test_truncated_picture_is_listed_and_tried_again_later_and_later(setup: Setup, engine: FakeEngine) -> None:
    engine.error = TruncatedPicture("is truncated")
    waits_s = []
    for attempts in (1, 2, 3):
        assert setup.lacking() == ["a.jpg"]
        setup.submit()
        assert setup.worker.run_once(0)
        assert [failure.attempts for failure in setup.ledger.failures()] == [attempts]
        assert setup.lacking() == [], "its time has not come"
        path, wait_s = setup.folders.touched[-1]
        assert path == str(setup.image)
        waits_s.append(wait_s)
        setup.now_s += wait_s
    assert waits_s == [1, 2, 4]
    engine.error = None
    setup.submit()
    assert setup.worker.run_once(0)
    assert setup.reasons() == {}


def test_image_that_was_mended_is_tried_again_and_leaves_the_list(setup: Setup, engine: FakeEngine) -> None:
    engine.error = PictureError("truncated")
    setup.submit()
    setup.worker.run_once(0)
    engine.error = None
    setup.image.write_bytes(b"a whole picture")
    setup.submit()
    assert setup.worker.run_once(0)
    assert setup.reasons() == {}
    assert setup.image.with_suffix(".txt").exists()


def test_picture_of_a_year_that_no_ledger_can_count_to_is_captioned(setup: Setup) -> None:
    os.utime(setup.image, ns=(0, 13_569_465_600 * 10**9))  # 2400, where the file system knows it
    setup.submit()
    setup.hand_over_all()
    assert setup.image.with_suffix(".txt").exists()
    assert setup.lacking() == []


@pytest.mark.parametrize(
    ("call", "error"),
    [("claim", PictureError("no picture")), ("failed", PictureError("no picture")), ("release", Stopping("stops"))],
)
def test_job_ends_whatever_the_ledger_does(
    setup: Setup, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OverflowError("int too large")

    monkeypatch.setattr(setup.ledger, call, refuse)
    engine.error = error
    job = setup.put(Kind.BACKFILL)
    setup.hand_over_all()
    assert job.future.exception(0) is not None
    assert setup.queue.is_idle()
    assert not setup.queue.holds(str(setup.image))


def test_answer_about_a_file_that_changed_meanwhile_is_thrown_away(setup: Setup, engine: FakeEngine) -> None:
    engine.on_submit = lambda: setup.image.write_bytes(b"another picture") and None
    engine.content = digest_of(b"picture")
    setup.submit()
    setup.worker.run_once(0)
    assert not setup.image.with_suffix(".txt").exists()
    assert setup.folders.touched == [(str(setup.image), 0.0)]
    assert setup.queue.is_idle()


def test_answer_about_a_file_that_was_only_touched_meanwhile_is_kept(setup: Setup, engine: FakeEngine) -> None:
    engine.on_submit = lambda: os.utime(setup.image, (1, 1))
    engine.content = digest_of(b"picture")
    setup.submit()
    setup.worker.run_once(0)
    assert setup.image.with_suffix(".txt").exists()
    assert setup.folders.touched == []


def test_directory_that_becomes_a_link_during_the_work_leads_nowhere(setup: Setup, engine: FakeEngine) -> None:
    inside, outside = setup.image.parent / "sub", setup.image.parent / "outside"
    setup.folder = FolderConfig(path=inside)
    picture = inside / "deep" / "a.jpg"
    picture.parent.mkdir(parents=True)
    setup.image.rename(picture)

    def swap() -> None:
        picture.parent.rename(outside)
        picture.parent.symlink_to(outside)

    engine.on_submit = swap
    setup.submit(picture)
    setup.hand_over_all()
    assert len(engine.asked) == 1
    assert os.listdir(outside) == ["a.jpg"]


def test_image_deleted_during_the_work_leaves_nothing_behind(setup: Setup, engine: FakeEngine) -> None:
    engine.on_submit = setup.image.unlink
    setup.submit()
    setup.worker.run_once(0)
    assert os.listdir(setup.folder.path) == []
    assert setup.reasons() == {}


@pytest.mark.parametrize("overwrite", ["never", "stale", "always"])
def test_image_deleted_while_its_sidecars_are_written_leaves_nothing_new_behind(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, overwrite: str
) -> None:
    setup.folder = attrs.evolve(setup.folder, overwrite=overwrite)
    setup.image.with_suffix(".tag").write_text("by hand")
    write = atomic.Directory.write

    def write_and_delete(*arguments: Any) -> bool:
        setup.image.unlink(missing_ok=True)
        return write(*arguments)

    monkeypatch.setattr(atomic.Directory, "write", write_and_delete)
    setup.submit()
    setup.worker.run_once(0)
    assert os.listdir(setup.folder.path) == ["a.tag"]
    assert setup.queue.is_idle()


def test_failure_of_a_picture_that_is_not_taken_any_more_leaves_the_list(setup: Setup, engine: FakeEngine) -> None:
    engine.error = PictureError("is not a picture")
    setup.submit()
    setup.worker.run_once(0)
    setup.folder = attrs.evolve(setup.folder, exclude=("*.jpg",))
    assert setup.lacking() == []
    assert setup.reasons() == {}


def test_failure_in_a_directory_that_is_gone_leaves_the_list_unless_all_is_gone(
    setup: Setup, engine: FakeEngine
) -> None:
    picture = setup.image.parent / "sub" / "a.jpg"
    picture.parent.mkdir()
    setup.image.rename(picture)
    engine.error = PictureError("is not a picture")
    setup.submit(picture)
    setup.hand_over_all()
    picture.unlink()
    picture.parent.rmdir()
    setup.intake.scanned(setup.folder)
    assert setup.reasons() == {"a.jpg": "is not a picture"}, "it may only be unmounted"
    setup.image.touch()
    setup.intake.scanned(setup.folder)
    assert setup.reasons() == {}


def test_folder_that_hangs_while_sidecars_are_written_holds_up_no_other(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hung").mkdir()
    (tmp_path / "well").mkdir()
    goes_on = threading.Event()
    write = atomic.Directory.write

    def write_late(directory: atomic.Directory, *arguments: Any) -> bool:
        if directory.path.endswith("hung"):
            goes_on.wait(120)
        return write(directory, *arguments)

    monkeypatch.setattr(atomic.Directory, "write", write_late)
    queue, ledger = JobQueue(4), Ledger()
    worker = Worker(queue, engine, ledger, partial(making_of, ModelConfig(name="demo")))
    jobs = []
    for image in (*(tmp_path / "hung" / f"{number}.jpg" for number in range(10)), tmp_path / "well" / "a.jpg"):
        image.write_bytes(b"picture")
        about = Image(str(image), DEFAULT_OUTPUTS, None, root=str(image.parent))
        jobs.append(Job(Kind.FOLDER, str(image), asks_of(DEFAULT_OUTPUTS), about))
        queue.put(jobs[-1])
    try:
        while worker.run_once(0):
            pass
        jobs[-1].future.result(60)
        assert not queue.is_idle(), "the others run still"
    finally:
        goes_on.set()
        worker.close()
    assert all(job.future.done() for job in jobs)
    assert queue.is_idle()
    ledger.close()


def test_second_image_of_one_name_is_reported_and_overwrites_nothing(setup: Setup, engine: FakeEngine) -> None:
    other = setup.image.with_suffix(".png")
    other.write_bytes(b"x")
    setup.submit(other)
    setup.submit()
    while setup.worker.run_once(0):
        pass
    assert [picture for picture, _, _ in engine.asked] == [str(setup.image)]
    assert "its sidecar a.txt, a.tag belongs to a.jpg in the same folder" in setup.reasons()["a.png"]


def test_newcomer_to_a_sidecar_that_is_there_is_reported_too(setup: Setup, engine: FakeEngine) -> None:
    setup.submit()
    setup.worker.run_once(0)
    assert setup.lacking() == []
    other = setup.image.with_suffix(".png")
    other.write_bytes(b"x")
    assert setup.intake.needs(setup.folder, str(other)), "the scan is older than the newcomer"
    setup.submit(other)
    assert "belongs to a.jpg" in setup.reasons()["a.png"]
    assert setup.lacking() == []


def test_note_of_a_scan_costs_the_same_however_many_directories_it_saw(setup: Setup) -> None:
    """Of a million pictures in 10,000 directories, thousands are seen within the time that a note is kept."""

    class Notes(dict[str, Any]):
        """Counts how many notes are looked at."""

        looks = 0

        def values(self) -> Iterator[Any]:  # type: ignore[override]
            return self._count(super().values())

        def items(self) -> Iterator[Any]:  # type: ignore[override]
            return self._count(super().items())

        def __iter__(self) -> Iterator[str]:
            return self._count(super().keys())

        def _count(self, notes: Iterable[Any]) -> Iterator[Any]:
            for note in notes:
                self.looks += 1
                yield note

    intake = FolderIntake(setup.queue, setup.ledger, Needs(setup.ledger, setup.makes), lambda: 0.0)
    intake._scanned = notes = Notes()
    for number in range(2000):
        list(intake.lacking(setup.folder, Listing(f"/p/{number}", (), frozenset())))
    assert len(notes) == 2000
    assert 2000 <= notes.looks < 3 * 2000


def test_picture_that_came_second_is_reported_whatever_its_name(setup: Setup) -> None:
    late = setup.image
    early = late.rename(late.with_suffix(".png"))
    setup.submit(early)
    setup.worker.run_once(0)
    late.write_bytes(b"another picture")
    assert setup.lacking() == ["a.jpg"]
    setup.submit(late)
    assert "belongs to a.png" in setup.reasons()["a.jpg"]
    assert setup.lacking() == []
    early.unlink()
    early.with_suffix(".txt").unlink()
    assert setup.lacking() == ["a.jpg"], "its turn has come"
    setup.submit(late)
    setup.worker.run_once(0)
    assert setup.reasons() == {}
    assert setup.image.with_suffix(".txt").exists()


def test_image_that_a_person_captioned_leaves_the_list(setup: Setup, engine: FakeEngine) -> None:
    engine.error = PictureError("truncated")
    setup.submit()
    setup.worker.run_once(0)
    for output in setup.folder.outputs:
        setup.image.with_suffix(output.ending).write_text("by hand")
    assert not setup.intake.needs(setup.folder, str(setup.image))
    assert setup.reasons() == {}


def test_model_that_cannot_be_had_pauses_folders_and_loses_nothing(setup: Setup, engine: FakeEngine) -> None:
    engine.error = CheckpointError("no such model")
    setup.submit()
    setup.worker.run_once(0)
    assert not setup.worker.run_once(0)
    assert setup.queue.counts()["folder"] == 1
    assert setup.reasons() == {}
    engine.error = None
    setup.now_s += PAUSE_S
    assert setup.worker.run_once(0)
    assert setup.image.with_suffix(".txt").exists()


def test_requests_are_still_served_while_folders_pause(setup: Setup, engine: FakeEngine) -> None:
    engine.error = CheckpointError("no such model")
    setup.submit()
    setup.worker.run_once(0)
    request = Job(Kind.HTTP, b"x", asks_of(DEFAULT_OUTPUTS))
    setup.queue.put(request)
    assert setup.worker.run_once(0)
    assert isinstance(request.future.exception(0), CheckpointError)


def test_backfill_learns_that_the_model_cannot_be_had(setup: Setup, engine: FakeEngine) -> None:
    engine.error = CheckpointError("no such model")
    job = setup.put(Kind.BACKFILL)
    setup.worker.run_once(0)
    assert isinstance(job.future.exception(0), CheckpointError)


@pytest.mark.parametrize("error", [EngineCrashed("three times"), ValueError("a bug"), Stopping("ends")])
def test_every_future_ends_whatever_happens(setup: Setup, engine: FakeEngine, error: Exception) -> None:
    engine.error = error
    job = setup.put(Kind.BACKFILL)
    setup.worker.run_once(0)
    assert job.future.exception(0) is not None
    assert setup.queue.is_idle()


def test_folder_that_cannot_be_written_is_a_reason(setup: Setup, engine: FakeEngine) -> None:
    (setup.folder.path / "sub").mkdir()
    image = setup.folder.path / "sub" / "b.jpg"
    image.write_bytes(b"x")
    job = Job(Kind.BACKFILL, str(image), asks_of(DEFAULT_OUTPUTS), Image(str(image), DEFAULT_OUTPUTS, None))
    engine.on_submit = lambda: image.unlink() or image.parent.rmdir()
    setup.queue.put(job)
    setup.worker.run_once(0)
    assert isinstance(job.future.exception(0), SidecarError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_folder_that_cannot_be_written_rests_and_nothing_more_is_asked(
    setup: Setup, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    other = setup.image.with_name("b.jpg")
    other.write_bytes(b"x")
    setup.submit()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.Directory, "write", refuse)
        setup.worker.run_once(0)
    ((path, reason),) = setup.folders.paused.items()
    assert path == str(setup.image)
    assert os.strerror(number) in reason
    assert setup.reasons() == {}, "it is not the picture's fault"
    setup.submit(other)
    setup.worker.run_once(0)
    assert len(engine.asked) == 1, "what was queued costs no inference"
    assert setup.queue.is_idle()
    setup.folders.paused.clear()
    for image in (setup.image, other):
        setup.submit(image)
    setup.hand_over_all()
    assert setup.image.with_suffix(".txt").exists()
    assert other.with_suffix(".txt").exists()


def test_claims_are_in_the_ledger_before_the_engine_is_asked(setup: Setup, engine: FakeEngine) -> None:
    seen: list[list[str]] = []
    engine.on_submit = lambda: seen.append(sorted(setup.ledger.troubled(str(setup.folder.path))))
    setup.image.with_name("b.jpg").write_bytes(b"x")
    setup.submit()
    setup.submit(setup.image.with_name("b.jpg"))
    setup.hand_over_all()
    assert seen[0] == ["a.jpg", "b.jpg"]
    assert setup.ledger.troubled(str(setup.folder.path)) == {}


def test_pictures_at_which_a_process_died_are_tried_one_at_a_time(setup: Setup, engine: FakeEngine) -> None:
    engine.holds_answers = True
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        path = str(setup.image.with_name(name))
        image = Image(path, DEFAULT_OUTPUTS, None, is_suspect=name != "3.jpg")
        setup.queue.put(Job(Kind.FOLDER, path, asks_of(DEFAULT_OUTPUTS), image))
    setup.hand_over_all()
    assert [os.path.basename(str(picture)) for picture, _, _ in engine.asked] == ["1.jpg", "3.jpg"]
    engine.waiting[0].set_result(done(engine.asked[0][1]))
    setup.hand_over_all()
    assert [os.path.basename(str(picture)) for picture, _, _ in engine.asked] == ["1.jpg", "3.jpg", "2.jpg"]


def test_stopped_work_is_no_failure_and_its_claim_is_given_back(setup: Setup, engine: FakeEngine) -> None:
    engine.error = Stopping("the daemon is stopping")
    setup.submit()
    setup.worker.run_once(0)
    assert setup.ledger.troubled(str(setup.folder.path)) == {}
    assert setup.lacking() == ["a.jpg"]


def test_failure_of_a_picture_that_is_gone_leaves_the_list_at_the_next_scan(setup: Setup, engine: FakeEngine) -> None:
    engine.error = PictureError("is not a picture")
    setup.submit()
    setup.worker.run_once(0)
    assert setup.reasons() != {}
    setup.image.unlink()
    assert setup.lacking() == []
    assert setup.reasons() == {}


def test_stale_folder_writes_once_more_when_the_model_has_changed(setup: Setup, engine: FakeEngine) -> None:
    setup.folder = attrs.evolve(setup.folder, overwrite="stale")
    setup.submit()
    setup.worker.run_once(0)
    setup.image.with_suffix(".tag").write_text("by hand")
    assert setup.lacking() == []
    setup.model = ModelConfig(name="another")
    for inferences in (2, 2):
        for name in setup.lacking():
            setup.submit(setup.image.with_name(name))
        setup.hand_over_all()
        assert len(engine.asked) == inferences
    assert [ask.prompt for ask in engine.asked[1][1]] == ["<MORE_DETAILED_CAPTION>"]
    assert setup.image.with_suffix(".tag").read_text() == "by hand"


def test_sidecar_that_a_person_edits_while_it_is_made_anew_stays(setup: Setup, engine: FakeEngine) -> None:
    setup.folder = attrs.evolve(setup.folder, overwrite="stale")
    setup.submit()
    setup.worker.run_once(0)
    setup.model = ModelConfig(name="another")
    engine.on_submit = lambda: setup.image.with_suffix(".txt").write_text("by hand") and None
    setup.submit()
    setup.worker.run_once(0)
    assert len(engine.asked) == 2
    assert setup.image.with_suffix(".txt").read_text() == "by hand"


def test_always_writes_over_a_persons_sidecars_once(setup: Setup, engine: FakeEngine) -> None:
    setup.folder = attrs.evolve(setup.folder, overwrite="always")
    for output in DEFAULT_OUTPUTS:
        setup.image.with_suffix(output.ending).write_text("by hand")
    for _ in range(3):
        for name in setup.lacking():
            setup.submit(setup.image.with_name(name))
        setup.hand_over_all()
    assert len(engine.asked) == 1
    assert setup.image.with_suffix(".txt").read_text() == "answer to MORE_DETAILED_CAPTION\n"


def test_people_are_urgent_and_folders_are_not(setup: Setup, engine: FakeEngine) -> None:
    setup.submit()
    setup.queue.put(Job(Kind.HTTP, b"x", asks_of(DEFAULT_OUTPUTS)))
    while setup.worker.run_once(0):
        pass
    assert [urgent for _, _, urgent in engine.asked] == [True, False]


def test_engine_gets_as_many_as_keep_it_busy_and_people_get_through(setup: Setup, engine: FakeEngine) -> None:
    engine.holds_answers = True
    for number in range(10):
        setup.put(Kind.BACKFILL, f"{number}.jpg")
    setup.hand_over_all()
    assert len(engine.asked) == engine.in_flight
    setup.queue.put(Job(Kind.HTTP, b"x", asks_of(DEFAULT_OUTPUTS)))
    setup.hand_over_all()
    assert [urgent for _, _, urgent in engine.asked] == [*[False] * engine.in_flight, True]


def test_folder_waits_for_no_more_of_a_backfill_than_the_engine_holds(setup: Setup, engine: FakeEngine) -> None:
    engine.holds_answers = True
    for number in range(10):
        setup.put(Kind.BACKFILL, f"{number}.jpg")
    setup.hand_over_all()
    setup.submit()
    setup.hand_over_all()
    assert engine.asked[-1][0] != str(setup.image)
    engine.waiting[0].set_result(done(engine.asked[0][1]))
    setup.hand_over_all()
    assert engine.asked[-1][0] == str(setup.image)


def test_job_ends_when_it_is_answered_whichever_came_first(setup: Setup, engine: FakeEngine) -> None:
    engine.holds_answers = True
    first, second = setup.put(Kind.BACKFILL, "first.jpg"), setup.put(Kind.BACKFILL, "second.jpg")
    setup.hand_over_all()
    engine.waiting[1].set_result(done(second.asks))
    assert second.future.done()
    assert not first.future.done()
    engine.waiting[0].set_exception(PictureError("truncated"))
    assert isinstance(first.future.exception(0), PictureError)
    assert setup.queue.is_idle()


def test_folder_jobs_that_pause_together_keep_their_order(setup: Setup, engine: FakeEngine) -> None:
    engine.holds_answers = True
    names = ["1.jpg", "2.jpg", "3.jpg"]
    for name in names:
        setup.put(Kind.FOLDER, name)
    setup.hand_over_all()
    for waiting in engine.waiting:
        waiting.set_exception(CheckpointError("no such model"))
    setup.now_s += PAUSE_S
    setup.hand_over_all()
    assert [os.path.basename(str(picture)) for picture, _, _ in engine.asked] == names * 2


def test_stopped_worker_still_ends_what_the_engine_has(setup: Setup, engine: FakeEngine) -> None:
    engine.holds_answers = True
    setup.submit()
    setup.hand_over_all()
    setup.worker.stop()
    setup.queue.close()
    setup.worker.run()
    assert not setup.queue.wait_until_done(0)
    engine.waiting[0].set_result(done(engine.asked[0][1]))
    assert setup.queue.wait_until_done(0)
    assert setup.image.with_suffix(".txt").exists()


def test_answer_that_comes_after_the_writers_have_closed_leaves_the_claim_to_the_next_start(
    setup: Setup, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.holds_answers = True
    worker = Worker(setup.queue, engine, setup.ledger, setup.makes, folders=setup.folders)
    job = setup.put(Kind.FOLDER)
    worker.run_once(0)
    worker.close()
    engine.waiting[0].set_result(done(job.asks))
    assert isinstance(job.future.exception(0), Stopping)
    assert setup.queue.wait_until_done(0)
    assert not setup.image.with_suffix(".txt").exists()
    assert str(setup.image.name) in setup.ledger.troubled(str(setup.folder.path))
    assert caplog.records == []


def poor(prompt: str, *, until: int) -> Callable[[Ask], Answer]:
    """An engine's answers: to this prompt they are cut off so many times, and good from then on."""
    asked = iter(range(1000))

    def say(ask: Ask) -> Answer:
        is_cut = ask.prompt == prompt and next(asked) < until
        return Answer(ask.prompt, f"answer to {ask.prompt.strip('<>')}", 100, is_cut)

    return say


def test_answer_that_is_no_caption_is_asked_once_more_in_another_way(setup: Setup, engine: FakeEngine) -> None:
    engine.answer = poor("<MORE_DETAILED_CAPTION>", until=1)
    setup.submit()
    setup.hand_over_all()
    assert [len(asks) for _, asks, _ in engine.asked] == [2, 1]
    assert engine.asked[1][1] == (Ask("<MORE_DETAILED_CAPTION>", max_new_tokens=4096, no_repeat_ngram_size=3),)
    assert setup.image.with_suffix(".txt").read_text() == "answer to MORE_DETAILED_CAPTION\n"
    assert setup.image.with_suffix(".tag").read_text() == "answer to GENERATE_TAGS\n"
    assert setup.reasons() == {}
    assert setup.worker.counts.captioned == 1
    assert setup.queue.is_idle()


def test_answer_that_is_no_caption_twice_is_listed_and_the_other_sidecars_are_written(
    setup: Setup, engine: FakeEngine
) -> None:
    engine.answer = poor("<MORE_DETAILED_CAPTION>", until=99)
    setup.submit()
    setup.hand_over_all()
    assert [len(asks) for _, asks, _ in engine.asked] == [2, 1]
    assert not setup.image.with_suffix(".txt").exists()
    assert setup.image.with_suffix(".tag").read_text() == "answer to GENERATE_TAGS\n"
    assert "<MORE_DETAILED_CAPTION> was cut off after 100 tokens" in setup.reasons()["a.jpg"]
    assert setup.worker.counts == Counts(failed=1)
    assert setup.queue.is_idle()
    assert setup.lacking() == [], "the model says the same of the same picture"
    engine.answer = poor("", until=0)
    setup.ledger.settled(str(setup.image))  # as `retry` does
    setup.submit()
    setup.hand_over_all()
    assert setup.image.with_suffix(".txt").read_text() == "answer to MORE_DETAILED_CAPTION\n"
    assert setup.reasons() == {}


def test_picture_that_changes_between_the_two_tries_is_looked_at_again(setup: Setup, engine: FakeEngine) -> None:
    engine.answer = poor("<MORE_DETAILED_CAPTION>", until=1)

    def change() -> None:
        content = b"picture" if len(engine.asked) == 1 else b"another picture"
        setup.image.write_bytes(content)
        engine.content = digest_of(content)

    engine.on_submit = change
    setup.submit()
    setup.hand_over_all()
    assert len(engine.asked) == 2
    assert os.listdir(setup.folder.path) == ["a.jpg"]
    assert setup.folders.touched == [(str(setup.image), 0.0)]


def test_tries_of_two_models_are_not_put_together(setup: Setup, engine: FakeEngine) -> None:
    engine.answer = poor("<MORE_DETAILED_CAPTION>", until=1)
    setup.submit()
    setup.worker.run_once(0)
    setup.worker.model = ModelConfig(name="another")  # as when the configuration changes
    setup.hand_over_all()
    assert [len(asks) for _, asks, _ in engine.asked] == [2, 1, 2]
    assert setup.image.with_suffix(".txt").read_text() == "answer to MORE_DETAILED_CAPTION\n"
    assert setup.reasons() == {}
    assert setup.queue.is_idle()


def test_people_get_the_answer_as_it_is_and_at_once(setup: Setup, engine: FakeEngine) -> None:
    engine.answer = poor("<CAPTION>", until=99)
    job = Job(Kind.HTTP, b"x", (Ask("<CAPTION>"),))
    setup.queue.put(job)
    setup.hand_over_all()
    assert job.future.result(0).answers[0].is_cut
    assert len(engine.asked) == 1


def test_other_try_has_its_place_in_the_queue_and_a_stop_ends_it(setup: Setup, engine: FakeEngine) -> None:
    engine.answer = poor("<MORE_DETAILED_CAPTION>", until=99)
    first, second = setup.put(Kind.BACKFILL, "a.jpg"), setup.put(Kind.BACKFILL, "b.jpg")
    setup.worker.run_once(0)
    assert not first.future.done()
    assert setup.queue.holds(str(setup.image))
    assert setup.ledger.troubled(str(setup.folder.path)) == {}, "no stop that comes now is its fault"
    assert setup.queue.close() == [first, second]
    with pytest.raises(Stopping):
        setup.queue.put_again(first, done(first.asks), (), setup.model)


def test_any_name_can_be_printed() -> None:
    assert printable("a\nb\udcff.jpg") == "a\\nb\\udcff.jpg"
    assert printable("ü 猫.jpg") == "ü 猫.jpg"
