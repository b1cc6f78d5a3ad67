"""The choice of device, engine, precision and batch, and what is said where something cannot be had."""

from __future__ import annotations

import pytest
import torch

from florence_daemon.engine import backend as backends
from florence_daemon.engine.backend import (
    check_precision,
    choose_device,
    choose_engine,
    choose_precision,
    gpu_bytes,
    start_batching,
)
from florence_daemon.engine.protocol import EngineSettings
from florence_daemon.errors import EngineError
from tests.engine.fake_backend import CHECKPOINT, FakeBackend


def install(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Let only these optional modules be there."""
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name if name in modules else None)


@pytest.mark.parametrize(
    ("wanted", "precision", "device", "engine"),
    [
        ("auto", "auto", "cpu", "openvino"),
        ("auto", "int8", "cpu", "openvino"),
        ("auto", "float32", "cpu", "openvino"),
        ("auto", "bfloat16", "cpu", "torch"),
        ("auto", "auto", "cuda:0", "torch"),
        ("auto", "auto", "mps", "torch"),
        ("torch", "auto", "cpu", "torch"),
        ("transformers", "auto", "cpu", "transformers"),
        ("openvino", "auto", "cpu", "openvino"),
    ],
)
def test_engine_where_openvino_is_installed(
    wanted: str, precision: str, device: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "openvino")
    assert choose_engine(wanted, precision, device) == engine


def test_without_openvino_a_cpu_runs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert choose_engine("auto", "auto", "cpu") == "torch"


@pytest.mark.parametrize(("engine", "precision"), [("openvino", "auto"), ("auto", "int8")])
def test_what_needs_openvino_says_how_to_install_it(
    engine: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    with pytest.raises(EngineError, match=r"not installed: pip install 'florence-daemon\[openvino\]'"):
        choose_engine(engine, precision, "cpu")


def test_openvino_is_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "openvino")
    with pytest.raises(EngineError, match=r"runs on the CPU, not on cuda:0; set model\.device to cpu"):
        choose_engine("openvino", "auto", "cuda:0")


@pytest.mark.parametrize(
    ("precision", "engine"), [("int8", "torch"), ("int8", "transformers"), ("float16", "openvino")]
)
def test_precision_that_an_engine_has_not_is_refused_by_name(precision: str, engine: str) -> None:
    with pytest.raises(EngineError, match=f"The engine {engine} cannot do {precision}, only float32"):
        check_precision(precision, engine)


def test_unknown_precision_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(EngineError, match="'int4' is not known; there are: auto, float32, float16, bfloat16, int8"):
        check_precision("int4", "torch")


@pytest.mark.parametrize(
    ("device", "engine", "proved", "precision"),
    [
        ("cpu", "openvino", True, "int8"),
        ("cpu", "openvino", False, "float32"),
        ("cpu", "torch", True, "float32"),
        ("cuda:0", "torch", False, "float16"),
        ("mps", "torch", False, "float32"),
    ],
)
def test_auto_is_int8_only_where_it_has_proved_itself(
    device: str, engine: str, proved: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "is_proved", lambda checkpoint, settings: proved)
    assert choose_precision(CHECKPOINT, EngineSettings("demo"), device, engine) == precision


def test_precision_that_a_person_sets_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_proved", lambda checkpoint, settings: True)
    assert choose_precision(CHECKPOINT, EngineSettings("demo", precision="float32"), "cpu", "openvino") == "float32"


def test_device_without_a_driver_for_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "GPU_DRIVERS", ())
    monkeypatch.setattr(backends.sys, "platform", "linux")
    monkeypatch.setattr(backends, "_available_devices", lambda: pytest.fail("torch was asked"))
    assert choose_device("auto") == "cpu"


def test_auto_takes_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(backends, "_available_devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    assert choose_device("auto") == choose_device("cuda") == "cuda:0"
    assert choose_device("cuda:1") == "cuda:1"


def test_batch_is_what_fits_into_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # The fake takes a byte for each token of each beam: 3 × 512 a question.
    monkeypatch.setattr(backends, "_free_bytes", lambda device, settings: 2 * 3 * 512 * 5)
    assert start_batching(FakeBackend(), CHECKPOINT, EngineSettings("demo")).batch == 5
    assert start_batching(FakeBackend(), CHECKPOINT, EngineSettings("demo", max_new_tokens=256)).batch == 8
    assert start_batching(FakeBackend(), CHECKPOINT, EngineSettings("demo", max_batch=20)).batch == 20


def test_gpu_memory_is_told_where_torch_has_a_gpu() -> None:
    assert gpu_bytes("cpu") is None
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU that torch can use")
    held = torch.zeros(2**20, device="cuda:0")
    assert (gpu_bytes("cuda:0") or 0) >= held.nbytes
