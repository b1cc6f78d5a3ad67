"""`/metrics` after real work, read by prometheus-client's own parser; and the dashboard that is drawn from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from florence_daemon.engine.protocol import Answer, Ask, Done, Stages
from florence_daemon.queue import Job, JobQueue, Kind
from florence_daemon.tally import BOUNDS_S, Tally
from tests.conftest import RunningDaemon, wait_for
from tests.pictures import jpeg

DASHBOARD = Path(__file__).parents[1] / "docs" / "grafana-dashboard.json"
HEADERS = {"Authorization": "Bearer let-me-in"}
PREFIX = "florence_daemon_"
LABELS = {
    "class",
    "outcome",
    "stage",
    "le",
    "state",
    "direction",
    "folder",
    "health",
    "version",
    "model",
    "engine",
    "device",
    "kind",
}


class Scrape:
    """One answer of `/metrics`, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """A sample's value; None when there is no such sample. class_: the label `class`."""
        wanted = {label.rstrip("_"): value for label, value in labels.items()}
        return self._values.get((PREFIX + name, frozenset(wanted.items())))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._values}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon that watches the folder `pictures` beside its log."""
    home = tmp_path_factory.mktemp("metrics")
    (home / "pictures").mkdir()
    settings = "{name: demo}\nserver: {token: let-me-in}\n"
    folders = f"folders: [{{path: {json.dumps(str(home / 'pictures'))}, settle_s: 0.1}}]\n"
    running = RunningDaemon(home, config=f"model: {settings}{folders}")
    yield running
    running.stop()


def scrape(daemon: RunningDaemon) -> Scrape:
    response = httpx.get(f"{daemon.url}/metrics", headers=HEADERS, timeout=60)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(response.text)


@pytest.fixture(scope="module")
def worked(daemon: RunningDaemon) -> Scrape:
    """What is measured once two pictures are captioned, one is listed as broken, and a request is answered."""
    folder = daemon.log.parent / "pictures"
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(jpeg())
    (folder / "broken.jpg").write_bytes(b"not a picture at all")
    answer = httpx.post(
        f"{daemon.url}/process_image", files={"image": jpeg()}, data={"prompt": "CAPTION"}, headers=HEADERS, timeout=60
    )
    assert answer.status_code == 200
    return wait_for(
        lambda: (
            (now := scrape(daemon)).value("jobs_total", class_="folder", outcome="done") == 2
            and now.value("jobs_total", class_="folder", outcome="failed")
            and now
        ),
        what="two captions and a failure",
    )  # type: ignore[no-any-return]


def test_jobs_images_and_tokens_are_counted(worked: Scrape) -> None:
    assert worked.value("jobs_total", class_="folder", outcome="failed") == 1
    assert worked.value("jobs_total", class_="folder", outcome="postponed") == 0
    assert worked.value("jobs_total", class_="http", outcome="done") == 1
    assert worked.value("jobs_total", class_="http", outcome="withdrawn") == 0
    assert worked.value("images_total", class_="folder") == 2
    assert worked.value("images_total", class_="http") == 1
    read, written = (worked.value("tokens_total", direction=way) for way in ("read", "written"))
    assert read is not None
    assert written is not None
    assert read > written > 3 * 5


def test_each_stage_has_its_seconds(worked: Scrape) -> None:
    for stage in ("wait", "decode", "vision", "text", "write"):
        assert worked.value("stage_seconds_count", class_="folder", stage=stage) == 2, stage
        assert worked.value("stage_seconds_bucket", class_="folder", stage=stage, le="+Inf") == 2, stage
        assert (worked.value("stage_seconds_sum", class_="folder", stage=stage) or 0) > 0, stage
    assert worked.value("stage_seconds_count", class_="http", stage="text") == 1
    assert worked.value("stage_seconds_count", class_="http", stage="write") is None
    assert worked.value("stage_seconds_count", class_="backfill", stage="text") == 0


def test_model_memory_queue_and_folders_are_told(worked: Scrape, daemon: RunningDaemon) -> None:
    assert worked.value("model_loaded") == 1
    assert worked.value("model_state", state="loaded") == 1
    assert worked.value("model_state", state="failed") == 0
    assert worked.value("model_load_seconds_count") == 1
    assert (worked.value("engine_resident_memory_bytes") or 0) > 50e6
    assert worked.value("engine_gpu_memory_bytes") == 0
    assert worked.value("jobs_waiting", class_="folder") == 0
    folder = str(daemon.log.parent / "pictures")
    assert worked.value("folder_health", folder=folder, health="ok") == 1
    assert worked.value("folder_health", folder=folder, health="failed") == 0
    assert worked.value("folder_settling_files", folder=folder) == 0
    assert "process_resident_memory_bytes" in worked.names


def test_names_keep_to_prometheus_conventions_and_labels_are_few(worked: Scrape) -> None:
    ours = [family for family in worked.families if family.name.startswith(PREFIX)]
    assert len(ours) > 10
    for family in ours:
        assert family.documentation, family.name
        assert not re.search(r"_(ms|mb|minutes)(_|$)", family.name), "base units"
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), family.name
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= LABELS, family.name
    assert len(worked.text.splitlines()) < 450


def test_metrics_want_the_token_as_all_else_does(daemon: RunningDaemon) -> None:
    assert httpx.get(f"{daemon.url}/metrics", timeout=60).status_code == 401


def test_dashboard_asks_for_metrics_that_are_there(worked: Scrape) -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    variables = [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    assert len(queries) >= 10
    asked: set[str] = set()
    for query in (*queries, *variables):
        names = set(re.findall(rf"\b(?:{PREFIX}|process_)\w+", query))
        assert names, query
        asked |= names
    assert asked <= worked.names
    totals = {name for name in worked.names if name.startswith(PREFIX) and name.endswith("_total")}
    assert totals <= asked, "the dashboard shows all that is counted"


def test_dashboard_and_page_name_labels_that_are_there(worked: Scrape) -> None:
    labels = {label for family in worked.families for sample in family.samples for label in sample.labels}
    expressions = DASHBOARD.read_text(encoding="utf-8")
    for group in re.findall(r"by \(([\w, ]+)\)", expressions):
        assert set(group.split(", ")) <= labels, group


def test_every_metric_is_explained_in_the_docs(worked: Scrape) -> None:
    page = (DASHBOARD.parent / "metrics.md").read_text(encoding="utf-8")
    ours = {family.name + ("_total" if family.type == "counter" else "") for family in worked.families}
    assert [name for name in sorted(ours) if name.startswith(PREFIX) and f"`{name}`" not in page] == []


def test_job_that_is_withdrawn_before_its_turn_is_counted_once() -> None:
    tally = Tally()
    queue = JobQueue(5, on_withdrawn=lambda job: tally.ended(job, "withdrawn"))
    gone, ended = (Job(Kind.HTTP, b"picture", (Ask("<CAPTION>"),)) for _ in range(2))
    for job in (gone, ended):
        queue.put(job)
    queue.withdraw(gone)
    queue.withdraw(gone)
    ended.future.cancel()
    assert queue.claim(0) is None
    assert tally.read().jobs == {(Kind.HTTP, "withdrawn"): 2}


def test_job_that_is_asked_about_twice_is_one_image_that_waited_once_and_took_twice_the_time() -> None:
    now_s = 100.0
    queue = JobQueue(5, clock=lambda: now_s)
    job = Job(Kind.BACKFILL, b"picture", (Ask("<CAPTION>"),), future=Future())
    queue.put(job)
    job.begun_s = 104.0
    tally = Tally()
    answers = (Answer("<CAPTION>", "a cat", tokens=4, prompt_tokens=580),)
    tally.answered(job, Done(1, answers, (10, 10), Stages(0.1, 0.2, 7200.0)))
    job.first = Done(1, answers, (10, 10), Stages())
    tally.answered(job, Done(1, answers, (10, 10), Stages(0.1, 0.2, 90_000.0)))
    counted = tally.read()
    assert counted.stages[Kind.BACKFILL, "wait"].sum_s == 4.0
    assert counted.stages[Kind.BACKFILL, "wait"].counts[BOUNDS_S.index(5.0)] == 1
    assert counted.images == {Kind.BACKFILL: 1}
    assert counted.stages[Kind.BACKFILL, "text"].counts[-2:] == [1, 1]
    assert (counted.tokens_read, counted.tokens_written) == (1160, 8)
