"""What no program can beat: the arithmetic and the bytes of an answer, over what the machine was measured to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from florence_daemon.engine.layout import Layout
from florence_daemon.engine.names import SHARED_EMBEDDING
from florence_daemon.engine.shapes import expected_shapes

BYTES_PER_WEIGHT = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Rates:
    """What the machine did in the best of several tries. matrix: of products; memory: of reading, matrix × vector."""

    matrix_gflop_s: float
    memory_gb_s: float


@dataclass(frozen=True)
class Work:
    """What one picture with one prompt costs at least.

    step_gflop: of one token of all beams. step_weights: read once a step, for all pictures of a batch together.
    step_seen: numbers of the cross-attention's keys and values, which each picture has for itself.
    """

    vision_gflop: float
    encoder_gflop: float
    step_gflop: float
    step_weights: int
    step_seen: int
    steps: int

    def alone_s(self, precision: str, rates: Rates) -> float:
        """Seconds for one picture."""
        return self.batched_s(precision, rates, 1)

    def batched_s(self, precision: str, rates: Rates, batch: int) -> float:
        """Seconds for each of `batch` pictures that are decoded together."""
        seen_s = (self.vision_gflop + self.encoder_gflop) / rates.matrix_gflop_s
        return seen_s + self.steps * self.step_s(precision, rates, batch) / batch

    def step_s(self, precision: str, rates: Rates, batch: int) -> float:
        """Seconds of one step: what bounds it, the memory or the arithmetic."""
        memory_s = self.step_gb(precision, batch) / rates.memory_gb_s
        return max(memory_s, batch * self.step_gflop / rates.matrix_gflop_s)

    def step_gb(self, precision: str, batch: int) -> float:
        """What a step reads. With int8 weights, what was seen is kept in float32."""
        seen_bytes = 4 if precision == "int8" else BYTES_PER_WEIGHT[precision]
        return (self.step_weights * BYTES_PER_WEIGHT[precision] + batch * self.step_seen * seen_bytes) / 1e9


def count_work(layout: Layout, prompt_tokens: int, new_tokens: int, beams: int) -> Work:
    """Count from the shapes of the network; norms, softmax and other element-wise work are left out."""
    shapes = {name: shape for name, shape in expected_shapes(layout).items() if len(shape) == 2}
    width, layers = layout.text["d_model"], layout.text["decoder_layers"]
    encoder = _weights(shapes, ".encoder.layers.")
    cross = [name for name in shapes if ".encoder_attn.k_proj." in name or ".encoder_attn.v_proj." in name]
    seen = sum(shapes[name][0] * shapes[name][1] for name in cross)
    step = _weights(shapes, ".decoder.layers.") - seen + shapes[SHARED_EMBEDDING][0] * width
    tokens = layout.image_tokens + prompt_tokens
    encoder_attention = 4 * tokens**2 * width * layout.text["encoder_layers"]
    look = 4 * tokens * width * layers
    own = 4 * (new_tokens / 2) * width * layers
    return Work(
        vision_gflop=_vision_flop(layout) / 1e9,
        encoder_gflop=(2 * tokens * (encoder + seen) + encoder_attention) / 1e9,
        step_gflop=beams * (2 * step + look + own) / 1e9,
        step_weights=step,
        step_seen=2 * tokens * width * layers,
        steps=new_tokens,
    )


def _weights(shapes: Mapping[str, tuple[int, ...]], part: str) -> int:
    return sum(shape[0] * shape[1] for name, shape in shapes.items() if part in name)


def _vision_flop(layout: Layout) -> int:
    """Two for each weight and token of convolutions and linear layers, and the two products of each attention."""
    vision = layout.vision
    side, before, flop = layout.image_side_px, 3, 0
    for stage, width in enumerate(vision["embed_dim"]):
        side = (side + 2 * vision["patch_padding"][stage] - vision["patch_size"][stage]) // vision["patch_stride"][
            stage
        ] + 1
        tokens = side * side
        flop += 2 * tokens * width * before * vision["patch_size"][stage] ** 2
        hidden = int(width * vision.get("mlp_ratio", 4.0))
        for attended in (vision["window_size"] ** 2, width // vision["num_groups"][stage]):
            linear = 4 * width * width + 2 * width * hidden + 2 * 9 * width
            flop += vision["depths"][stage] * tokens * (2 * linear + 4 * attended * width)
        before = width
    return flop + 2 * layout.image_tokens * before * vision["projection_dim"]


def measure_rates(device: str, precision: str) -> Rates:
    """Measure products of 2048 × 2048 and a matrix of 256 MB times a vector, each the best of its tries.

    The products are those of our own network in torch, by the quickest library that it has.
    """
    import torch

    from florence_daemon.engine.products import linear

    dtype = getattr(torch, precision)
    square = torch.randn(2048, 2048, device=device).to(dtype)
    tall = torch.randn(8192, 256 * 2**20 // 8192 // dtype.itemsize, device=device).to(dtype)
    vector = tall[0].clone()

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        product_s = _best_s(lambda: linear(square, square), wait)
        read_s = _best_s(lambda: torch.mv(tall, vector), wait)
    return Rates(2 * 2048**3 / product_s / 1e9, tall.numel() * dtype.itemsize / read_s / 1e9)


def _best_s(work: Callable[[], object], wait: Callable[[], None]) -> float:
    tries = []
    for _ in range(10):
        wait()
        began_s = time.perf_counter()
        work()
        wait()
        tries.append(time.perf_counter() - began_s)
    return min(tries)


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(vars(measure_rates(*sys.argv[1:]))))
