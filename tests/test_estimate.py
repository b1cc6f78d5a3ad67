"""An estimate: who is drawn, what a sample says of all the others, and the command, which writes nothing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import cast

import pytest

from florence_daemon.config import Config
from florence_daemon.daemon import Works
from florence_daemon.engine.protocol import Done, Stages
from florence_daemon.estimate import LEAST_SPREAD, Count, Estimate, Measured, Reservoir
from florence_daemon.estimate_report import estimate_lines
from florence_daemon.estimate_trial import Passes, Subject, Trial, listen
from florence_daemon.queue import Image, Job
from florence_daemon.reporting import Progress
from tests.conftest import RunningDaemon, run_command
from tests.pictures import write_many

ALIKE = Measured("demo", "cuda:0", 1, 16, 10.0, 8.0, 1, (Stages(0.5, 0.25, 0.25),) * 32)


def estimate(measured: Measured | None, due: int = 32_000) -> Estimate:
    return Estimate(Count(due + 100, due, 0), measured)


def test_sample_is_drawn_from_all_over_a_stream_and_the_same_each_time() -> None:
    drawn: Counter[int] = Counter()
    for seed in range(300):
        reservoir: Reservoir[int] = Reservoir(10, seed)
        for number in range(100):
            reservoir.offer(number)
        sample = reservoir.draw()
        assert len(set(sample)) == 10
        drawn.update(number // 25 for number in sample)
    assert all(650 < drawn[quarter] < 850 for quarter in range(4)), drawn
    assert reservoir.offered == 100
    again: Reservoir[int] = Reservoir(10, 299)
    for number in range(100):
        again.offer(number)
    assert again.draw() == sample


def test_sample_of_fewer_than_it_holds_is_all_of_them() -> None:
    reservoir: Reservoir[str] = Reservoir(10)
    for name in ("a", "b", "c"):
        reservoir.offer(name)
    assert sorted(reservoir.draw()) == ["a", "b", "c"]


def test_time_is_that_of_the_sample_for_all_and_the_load_once() -> None:
    span = estimate(ALIKE).span()
    assert span is not None
    assert span.likely_s == pytest.approx(10 + 8000)
    assert (span.least_s, span.most_s) == pytest.approx((10 + 8000 / 1.1, 10 + 8000 * 1.1))


def test_sample_that_was_over_in_a_moment_counts_as_often_as_it_was_timed() -> None:
    assert replace(ALIKE, passes=3, seconds=6.0).per_s == pytest.approx(16.0)
    line = estimate_lines(estimate(replace(ALIKE, passes=3, seconds=6.0)), None)[1]
    assert line == "32 pictures tried with demo on cuda:0, 3 times each, in 6.0 s: 16.0 pictures/s"


def test_so_many_gpus_share_the_work_and_each_loads() -> None:
    span = estimate(ALIKE).span(4)
    assert span is not None
    assert span.likely_s == pytest.approx(10 + 2000)
    two_worked = estimate(replace(ALIKE, engines=2)).span(4)
    assert two_worked is not None
    assert two_worked.likely_s == pytest.approx(10 + 4000)


def test_range_widens_with_the_sample_and_not_where_all_was_sampled() -> None:
    differing = replace(ALIKE, stages=(Stages(0, 0, 1.0), Stages(0, 0, 3.0)) * 16)
    # The mean is 2 and the deviation 1.016, so Student's t (2.04 for 31) times 0.0898.
    assert differing.spread(10**6) == pytest.approx(0.183, abs=0.002)
    assert differing.spread(32) == LEAST_SPREAD
    assert ALIKE.spread(10**6) == LEAST_SPREAD
    span = estimate(replace(differing, stages=(Stages(0, 0, 0.001), Stages(0, 0, 1000.0)))).span()
    assert span is not None
    assert 0 < span.least_s < span.likely_s < span.most_s


def test_failures_of_the_sample_are_expected_of_all() -> None:
    measured = replace(ALIKE, stages=ALIKE.stages[:30], failures={"a": "is empty", "b": "is truncated"})
    assert measured.pictures == 32
    assert estimate(measured).failing == 2000
    assert "2 of 32 failed; of all of them about 2,000 would" in estimate_lines(estimate(measured), None)


def test_estimate_says_where_the_time_goes_and_what_gpus_do_not_help() -> None:
    assert estimate_lines(estimate(ALIKE), 4) == [
        "32,100 pictures, 32,000 of them to be captioned",
        "32 pictures tried with demo on cuda:0, once each, in 8.0 s: 4.0 pictures/s",
        "one picture: decoding 500 ms (50 %), looking 250 ms (25 %), writing 250 ms (25 %); "
        "loading the model, once: 10.0 s",
        "",
        "this machine: 2 h 13 min (likely between 2 h 1 min and 2 h 26 min)",
        "4 such GPUs: 33 min 30 s (likely between 30 min 28 s and 36 min 50 s)",
    ]
    # 16 cores decode 32 pictures a second, which takes longer than 100 GPUs would.
    lines = estimate_lines(estimate(ALIKE), 100)
    assert lines[-1] == "not in one machine such as this: its 16 cores take 16 min 40 s to decode alone"
    cpu = replace(ALIKE, device="cpu")
    assert estimate_lines(estimate(cpu), 4)[-1].startswith("4 machines such as this one, which has no GPU: 33 min")


def test_range_that_is_one_second_wide_is_no_range() -> None:
    found = estimate(replace(ALIKE, load_s=0.6, seconds=0.2), due=32)
    assert estimate_lines(found, None)[-1] == "this machine: 1 s"


def test_what_fetching_takes_is_told_where_pictures_are_elsewhere() -> None:
    line = estimate_lines(estimate(replace(ALIKE, fetch_s=0.12)), None)[2]
    assert "writing 250 ms (25 %); fetched in 120 ms, several at a time; loading" in line


def test_servers_are_counted_as_servers() -> None:
    lines = estimate_lines(estimate(replace(ALIKE, device="http://a, http://b", engines=2)), 4)
    assert lines[-2].startswith("through these 2 servers: 2 h 13 min")
    assert lines[-1].startswith("4 such servers: 1 h 6 min")


def test_sample_of_which_nothing_could_be_captioned_says_nothing_of_the_rest() -> None:
    found = estimate(replace(ALIKE, stages=(), failures={"a": "is empty"}))
    assert found.span() is None
    assert "none of the sample could be captioned, so nothing can be said of the rest" in estimate_lines(found, 2)
    assert found.as_json(2)["here"] is None


class Clockwork:
    """A queue whose jobs end one after the other, each when it takes `picture_s` of a clock that nothing else moves."""

    def __init__(self, picture_s: float) -> None:
        self.ended = 0
        self.clock = lambda: self.ended * picture_s
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def put(self, job: Job) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self.ended += 1
            job.future.set_result(Done(0, (), (64, 64), Stages()))


def passes_of(picture_s: float, most: int) -> int:
    """How often a sample of 32 pictures is looked at that take so long each."""
    clockwork = Clockwork(picture_s)
    sample = [Subject(Image(f"{number}.jpg", (), None)) for number in range(32)]
    passes = Passes(sample, most, clockwork.clock)
    try:
        with ThreadPoolExecutor(1) as threads:
            works = cast(Works, SimpleNamespace(queue=clockwork))
            for _ in Trial(works, Config(), threads).answers(passes, len(sample)):
                passes.ended += 1
    finally:
        clockwork.stop()
    assert passes.ended == 32 * passes.begun
    return passes.begun


def test_only_the_first_look_at_each_picture_is_shown() -> None:
    shown: list[str] = []
    progress = cast(
        Progress, SimpleNamespace(advance=lambda failed: shown.append("on"), close=lambda: shown.append("closed"))
    )
    sample = [Subject(Image(f"{number}.jpg", (), None)) for number in range(2)]
    times = [Stages(0, 0, number) for number in range(6)]
    answers = [(sample[number % 2], Done(0, (), (64, 64), each)) for number, each in enumerate(times)]
    stages, _ = listen(answers, Passes(sample, 3, lambda: 0.0), progress)
    assert shown == ["on", "on", "closed"]
    assert list(stages.values()) == times[:2]


def test_sample_that_takes_long_is_looked_at_once_though_its_first_picture_is_there_soon() -> None:
    assert passes_of(0.5, most=100) == 1


def test_sample_that_is_over_soon_is_looked_at_again_but_never_more_pictures_than_the_backfill_would() -> None:
    assert 2 <= passes_of(0.01, most=100) <= 16
    assert passes_of(0.0001, most=3) == 3


def make_tree(root: Path) -> list[Path]:
    """Six pictures, one of which has its sidecars, one broken, and one whose sidecar is another's."""
    (root / "deep").mkdir(parents=True)
    write_many(root, 4)
    write_many(root / "deep", 2)
    for ext in ("txt", "tag"):
        (root / "deep" / f"000.{ext}").write_text("a caption\n")
    (root / "bad.jpg").write_bytes(b"nothing like a picture")
    (root / "003.png").write_bytes(b"its sidecar is that of 003.jpg")
    return sorted(root.rglob("*"))


def test_estimate_captions_a_sample_and_writes_nothing(tmp_path: Path) -> None:
    before = make_tree(tmp_path / "tree")
    result = run_command("backfill", "tree", "--model", "demo", "--estimate", "--gpus", "4", "--json", home=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["pictures"], found["due"], found["refused"]) == (8, 6, 1)
    sample = found["sample"]
    assert (sample["pictures"], sample["device"], found["expected_failures"]) == (6, "cpu", 1)
    assert sample["passes"] == 1, "the backfill itself would look at each of them once"
    assert [Path(each["path"]).name for each in sample["failures"]] == ["bad.jpg"]
    assert sample["pictures_per_s"] > 0
    assert sample["load_s"] > 0
    assert min(sample["picture"].values()) > 0
    assert found["here"]["least_s"] < found["here"]["likely_s"] < found["here"]["most_s"]
    assert found["gpus"]["count"] == 4
    assert found["gpus"]["likely_s"] < found["here"]["likely_s"]
    assert "bad.jpg: is not a picture that can be read" in result.stderr
    assert sorted((tmp_path / "tree").rglob("*")) == before
    # Nothing was noted either: a backfill that makes anew what is outdated finds nothing that it wrote.
    listed = run_command("backfill", "tree", "--model", "demo", "--overwrite", "stale", "--dry-run", home=tmp_path)
    assert "6 images would be captioned" in listed.stderr


def test_several_engines_are_loaded_before_the_time_counts(tmp_path: Path) -> None:
    write_many(tmp_path, 4)
    (tmp_path / "two.yaml").write_text("model: {name: demo, device: [cpu, cpu], idle_unload_s: 0}\n")
    result = run_command("backfill", ".", "--config", "two.yaml", "--estimate", "--json", home=tmp_path)
    assert result.returncode == 0, result.stderr
    sample = json.loads(result.stdout)["sample"]
    assert (sample["pictures"], sample["engines"], sample["failures"]) == (4, 2, [])


def test_estimate_through_a_server_asks_it(start_daemon: Callable[..., RunningDaemon], tmp_path: Path) -> None:
    write_many(tmp_path, 3)
    server = start_daemon()
    result = run_command("backfill", ".", "--server", server.url, "--estimate", "--json", home=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["model"], found["sample"]["device"]) == ("demo", server.url)
    assert (found["sample"]["pictures"], found["sample"]["failures"]) == (3, [])
    assert found["here"]["likely_s"] > 0
    assert not list(tmp_path.glob("*.txt"))


def test_estimate_of_nothing_loads_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not looked at")
    (tmp_path / "a.txt").write_text("a caption\n")
    (tmp_path / "a.tag").write_text("tags\n")
    result = run_command("backfill", ".", "--model", "no/such", "--estimate", home=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "1 picture, 0 of them to be captioned\nnothing to do\n"


def test_estimate_of_broken_pictures_alone_fails(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"bad")
    result = run_command("backfill", "a.jpg", "--model", "demo", "--estimate", home=tmp_path)
    assert result.returncode == 1
    assert "a.jpg: is not a picture that can be read" in result.stderr
    assert "none of the sample could be captioned" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpus", "2"], "--gpus goes with --estimate"),
        (["--estimate", "--dry-run"], "--estimate and --dry-run do not go together"),
        (
            ["s3://bucket/photos", "--estimate", "--server", "http://127.0.0.1:9"],
            "an estimate for a cluster or a store needs the model on this machine",
        ),
    ],
)
def test_what_does_not_go_with_an_estimate_is_refused(tmp_path: Path, arguments: list[str], expected: str) -> None:
    result = run_command("backfill", ".", *arguments, home=tmp_path)
    assert (result.returncode, expected in result.stderr) == (2, True), result.stderr
