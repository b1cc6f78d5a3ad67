"""`GET /metrics`: what is measured, as Prometheus reads it. The only user of prometheus-client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import falcon

from florence_daemon.engine.member import MODEL_STATES
from florence_daemon.queue import Kind
from florence_daemon.tally import BOUNDS_S, OUTCOMES, STAGES, Histogram, Reading

if TYPE_CHECKING:
    from prometheus_client import Metric

PREFIX = "florence_daemon_"
HEALTHS = ("ok", "degraded", "failed")


class MetricsResource:
    """`GET /metrics`. The library is loaded with the first request: a daemon that nobody measures goes without it."""

    def __init__(self, reading: Callable[[], Reading]) -> None:
        self._reading = reading

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer in the text format."""
        from prometheus_client import ProcessCollector
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        families = [*_families(self._reading()), *ProcessCollector(registry=None).collect()]
        resp.content_type = CONTENT_TYPE_PLAIN_0_0_4
        resp.data = generate_latest(_Collected(families))

    on_head = on_get


@dataclass(frozen=True)
class _Collected:
    """What a registry would have collected."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families


def _families(reading: Reading) -> Iterator[Metric]:
    yield from _about_jobs(reading)
    yield from _about_stages(reading)
    yield from _about_model(reading)
    yield from _about_engines(reading)
    yield from _about_folders(reading)


def _about_jobs(reading: Reading) -> Iterator[Metric]:
    counted = reading.counted
    jobs = _counter("jobs", "Jobs that ended: done, failed, postponed (its folder or the model waits), withdrawn (its "
                    "client hung up before its turn)", ["class", "outcome"])  # fmt: skip
    images = _counter("images", "Images that the model has answered about", ["class"])
    waiting = _gauge("jobs_waiting", "Jobs in the queue", ["class"])
    for kind in Kind:
        name = kind.name.lower()
        for outcome in OUTCOMES:
            jobs.add_metric([name, outcome], counted.jobs[kind, outcome])
        images.add_metric([name], counted.images[kind])
        waiting.add_metric([name], reading.waiting[kind])
    tokens = _counter("tokens", "Tokens that the model has read (of images and prompts) and written", ["direction"])
    tokens.add_metric(["read"], counted.tokens_read)
    tokens.add_metric(["written"], counted.tokens_written)
    yield from (jobs, images, waiting, tokens)
    yield _gauge("jobs_running", "Jobs that the engine has, or whose sidecars are being written", value=reading.running)


def _about_stages(reading: Reading) -> Iterator[Metric]:
    stages = _histogram("stage_seconds", "Seconds that jobs took: to wait for their turn, in the engine (decode, "
                        "vision, text), to write sidecars", ["class", "stage"])  # fmt: skip
    for kind in Kind:
        for stage in STAGES:
            histogram = reading.counted.stages.get((kind, stage))
            if histogram is not None:
                stages.add_metric([kind.name.lower(), stage], _buckets(histogram), histogram.sum_s)
    yield stages
    loads = _histogram("model_load_seconds", "Seconds that loading the model took", [])
    loads.add_metric([], _buckets(reading.counted.loads), reading.counted.loads.sum_s)
    yield loads


def _about_model(reading: Reading) -> Iterator[Metric]:
    engine = reading.engine
    info = _gauge("info", "Which version runs, and which model it is set to", ["version", "model"])
    info.add_metric([reading.version, reading.model], 1)
    yield info
    state = _gauge("model_state", "1 for the state that the model is in", ["state"])
    for name in MODEL_STATES:
        state.add_metric([name], engine.name == name)
    yield state
    yield _gauge("model_loaded", "Whether the model is loaded", value=engine.name == "loaded")
    resident, gpu = sum(each.resident_bytes or 0 for each in reading.engines), engine.gpu_bytes or 0
    yield _gauge("engine_resident_memory_bytes", "Main memory of all engine processes, 0 without one", value=resident)
    yield _gauge("engine_gpu_memory_bytes", "GPU memory that the engine processes hold, as they last told", value=gpu)


def _about_engines(reading: Reading) -> Iterator[Metric]:
    labels = ["engine", "device"]
    state = _gauge("engine_state", "1 for the state that an engine is in", [*labels, "state"])
    running = _gauge("engine_requests_running", "Requests that an engine has", labels)
    answered = _counter("engine_requests_answered", "Requests that an engine has answered", labels)
    memory = _gauge("engine_memory_bytes", "Memory of an engine's process: main, and the GPU's", [*labels, "kind"])
    for number, each in enumerate(reading.engines):
        named = [str(number), each.member.name]
        for name in MODEL_STATES:
            state.add_metric([*named, name], each.member.state.name == name)
        running.add_metric(named, each.member.running)
        answered.add_metric(named, each.member.answered)
        memory.add_metric([*named, "main"], each.resident_bytes or 0)
        memory.add_metric([*named, "gpu"], each.member.state.gpu_bytes or 0)
    yield from (state, running, answered, memory)


def _about_folders(reading: Reading) -> Iterator[Metric]:
    health = _gauge("folder_health", "1 for the health that a watched folder is in", ["folder", "health"])
    settling = _gauge("folder_settling_files", "Files that are watched until they have stopped changing", ["folder"])
    for folder in reading.folders:
        for name in HEALTHS:
            health.add_metric([folder.path, name], folder.health == name)
        settling.add_metric([folder.path], folder.settling)
    yield from (health, settling)


def _counter(name: str, text: str, labels: list[str]) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(PREFIX + name, text, labels=labels)


def _gauge(name: str, text: str, labels: list[str] | None = None, value: float | None = None) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(PREFIX + name, text, labels=labels, value=value)


def _histogram(name: str, text: str, labels: list[str]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    return HistogramMetricFamily(PREFIX + name, text, labels=labels)


def _buckets(histogram: Histogram) -> list[tuple[str, int]]:
    """Counts up to each bound, as Prometheus wants them."""
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
