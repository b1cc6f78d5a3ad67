"""Makes the form of a checkpoint that OpenVINO runs: exports our own modules, compiles them, and quantizes them."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from florence_daemon.engine.bart import CrossAttention, DecoderLayer, Memory
from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.decoder import LIKELIEST
from florence_daemon.engine.model import Florence2, load_network
from florence_daemon.engine.openvino_form import EMBEDDING, PARTS, Form, begin_form, finish_form
from florence_daemon.engine.openvino_quiet import load_nncf, ov
from florence_daemon.engine.openvino_run import compile_part

log = logging.getLogger(__name__)


class See(nn.Module):
    """Pixels (1, 3, S, S) to features (1, I, D)."""

    def __init__(self, network: Florence2) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.see(pixels)


class Read(nn.Module):
    """Features (1, I, D) and the embedded prompt (1, T, D) to all decoder layers' keys and values of both.

    Keys are turned and scaled here, once, as a step's product wants them: (layers, 1, heads, d, I + T).
    """

    def __init__(self, network: Florence2) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.network.encoder(torch.cat([features, embedded], dim=1))
        memory = self.network.decoder.remember(encoded)
        return memory.keys.transpose(-1, -2) * memory.keys.shape[-1] ** -0.5, memory.values


class Turned(nn.Module):
    """CrossAttention over keys that `Read` has turned and scaled: (Q, heads, d, S)."""

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend with plain products; mask: (Q, 1, 1, S), -inf where nothing may be seen."""
        query = self.attention.q_proj(tokens).unflatten(-1, (keys.shape[1], -1)).transpose(1, 2)
        seen = (query @ keys + mask).softmax(dim=-1) @ values
        return self.attention.out_proj(seen.transpose(1, 2).flatten(2))


class Grown:
    """What rows have written, by joining: each layer's keys and values of before, reordered, and the new ones."""

    def __init__(self, past: list[Tensor], parents: Tensor, mask: Tensor) -> None:
        self.mask = mask
        self.present: list[Tensor] = []
        self._past = past
        self._parents = parents

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `bart.Written`."""
        old_keys, old_values = (table.index_select(0, self._parents) for table in self._past[2 * layer : 2 * layer + 2])
        keys, values = torch.cat([old_keys, key], dim=2), torch.cat([old_values, value], dim=2)
        self.present += [keys, values]
        return keys, values


class Write(nn.Module):
    """One step of all rows: the embedded last tokens (Q, W, D) to the likeliest next ones.

    ages: (Q,). parents: (R,) int32, the row of the step before that each row goes on from. own_mask: (R, 1, 1, T + 1)
    and seen_mask: (Q, 1, 1, S), -inf where nothing may be seen. past: each layer's own keys and values, (R', heads, T,
    d). seen: each layer's keys (Q, heads, d, S) and values (Q, heads, S, d) of picture and prompt.
    """

    def __init__(self, network: Florence2, never_id: int) -> None:
        super().__init__()
        self.decoder = copy.copy(network.decoder)
        self.decoder._modules = {
            **network.decoder._modules,
            "layers": nn.ModuleList(map(_turned, network.decoder.layers)),
        }
        self.shared = network.shared
        never = torch.zeros(network.shared.num_embeddings)
        never[never_id] = float("-inf")
        self.register_buffer("never", never)

    def forward(
        self,
        embedded: Tensor,
        ages: Tensor,
        parents: Tensor,
        own_mask: Tensor,
        seen_mask: Tensor,
        past: list[Tensor],
        seen: list[Tensor],
    ) -> tuple[Tensor, ...]:
        written = Grown(past, parents, own_mask)
        tokens = self.decoder(embedded, ages, written, Memory(seen[::2], seen[1::2], seen_mask))
        logits = functional.linear(tokens.flatten(0, 1), self.shared.weight, self.never)
        likeliest, ids = logits.topk(LIKELIEST, dim=-1)
        return likeliest, ids, logits.logsumexp(dim=-1), logits, *written.present


def _turned(layer: DecoderLayer) -> DecoderLayer:
    """The same layer, which reads turned keys; the original is left as it is."""
    turned = copy.copy(layer)
    turned._modules = {**layer._modules, "encoder_attn": Turned(layer.encoder_attn)}
    return turned


def export(checkpoint: Checkpoint, directory: Path) -> None:
    """Make the float32 form: networks compiled for this machine, which load in a second."""
    form = begin_form(directory, checkpoint)
    network = load_network(checkpoint, "cpu", torch.float32)
    write_embedding(form, network)
    for part in PARTS:
        compile_part(export_part(part, network, checkpoint), form.blob(part))
    finish_form(form, {})


def calibrate(
    checkpoint: Checkpoint,
    pixels: Iterable[NDArray[np.float32]],
    directory: Path,
    on_progress: Callable[[str], None] = lambda step: None,
    vision: str | None = None,
) -> None:
    """Make the int8 form: weights of the text part in int8, those and the activations of the vision part too.

    pixels: pictures like those that will be captioned, (3, S, S) float32, normalised; their activations' ranges are
    what int8 must hold. The vision part stays float32 where int8 is not faster on this machine: x86 processors without
    VNNI multiply int8 slower than float32. on_progress: told what is done next. vision: `float32` or `int8`, whichever
    is faster.
    """
    nncf = load_nncf()
    form = begin_form(directory, checkpoint)
    network = load_network(checkpoint, "cpu", torch.float32)
    write_embedding(form, network)
    samples = [each[None] for each in pixels]
    on_progress("exporting the vision part")
    plain = export_part("see", network, checkpoint)
    on_progress(f"calibrating the vision part with {len(samples)} pictures")
    quantized = quantize_vision(plain, samples)
    on_progress("timing the vision part in float32 and in int8")
    seconds = {"float32": time_vision(plain, samples[0]), "int8": time_vision(quantized, samples[0])}
    vision = vision or min(seconds, key=lambda precision: seconds[precision])
    log.info("vision takes %(float32).2f s a picture in float32 and %(int8).2f s in int8", seconds)
    ov.save_model(quantized if vision == "int8" else plain, form.xml("see"), compress_to_fp16=False)
    for part in PARTS[1:]:
        on_progress(f"quantizing the weights of the part that {part}s")
        compressed = nncf.compress_weights(
            export_part(part, network, checkpoint), mode=nncf.CompressWeightsMode.INT8_SYM
        )
        ov.save_model(compressed, form.xml(part), compress_to_fp16=False)
    finish_form(form, {"vision": vision, "vision_s": seconds})


def quantize_vision(model: ov.Model, samples: list[NDArray[np.float32]]) -> ov.Model:
    """Put the vision part's large products, weights and activations, in int8; all else stays float32.

    The products of linear layers are nine tenths of the arithmetic; what is around them would lose more than it gains.
    """
    nncf = load_nncf()
    left = ["Convolution", "GroupConvolution", "ScaledDotProductAttention", "Add", "Multiply", "ReduceMean", "MVN"]
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        ignored_scope=nncf.IgnoredScope(types=left, validate=False),
    )


def time_vision(model: ov.Model, sample: NDArray[np.float32], tries: int = 3) -> float:
    """Seconds that the vision part takes for a picture, the best of some."""
    request = compile_part(model).create_infer_request()
    seconds = []
    for _ in range(tries):
        started_s = time.perf_counter()
        request.infer([sample])
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)


def write_embedding(form: Form, network: Florence2) -> None:
    """Keep the table of tokens as a file of its own: rows are read where they lie, no network needs a copy."""
    np.save(form.directory / EMBEDDING, (network.shared.weight * network._scale).numpy())


def export_part(part: str, network: Florence2, checkpoint: Checkpoint) -> ov.Model:
    """Turn one of PARTS into OpenVINO's form."""
    layout = checkpoint.layout
    width = layout.text["d_model"]
    with warnings.catch_warnings():
        # torch says that its tracer will go some day, and that shapes become constants: here they are.
        warnings.simplefilter("ignore")
        if part == "see":
            side = layout.image_side_px
            return ov.convert_model(
                See(network), example_input=torch.zeros(1, 3, side, side), input=[(1, 3, side, side)]
            )
        if part == "read":
            features, embedded = torch.zeros(1, layout.image_tokens, width), torch.zeros(1, 4, width)
            model = ov.convert_model(Read(network), example_input=(features, embedded))
            model.reshape({0: ov.PartialShape([1, layout.image_tokens, width]), 1: ov.PartialShape([1, -1, width])})
            return model
        return _export_write(Write(network, layout.image_token_id), layout.text)


def _export_write(module: Write, text: dict[str, Any]) -> ov.Model:
    """Export a step, with what the rows have written as the network's own state, reordered inside."""
    layers, heads = text["decoder_layers"], text["decoder_attention_heads"]
    width = text["d_model"]
    head = width // heads
    from openvino import _offline_transformations as offline

    questions, beams, written, seen = 2, 3, 4, 5
    rows = questions * beams
    both = range(2 * layers)
    example = (
        torch.zeros(questions, beams, width),
        torch.zeros(questions, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.int32),
        torch.zeros(rows, 1, 1, written + 1),
        torch.zeros(questions, 1, 1, seen),
        [torch.zeros(rows, heads, written, head) for _ in both],
        [torch.zeros(questions, heads, *((head, seen) if n % 2 == 0 else (seen, head))) for n in both],
    )
    model = ov.convert_model(module, example_input=example)
    names = ["embedded", "ages", "parents", "own_mask", "seen_mask"]
    names += [f"past.{n}" for n in both] + [f"seen.{n}" for n in both]
    outputs = ["likeliest", "ids", "log_norm", "logits"] + [f"present.{n}" for n in both]
    shapes = [[-1, -1, width], [-1], [-1], [-1, 1, 1, -1], [-1, 1, 1, -1]] + [[-1, heads, -1, head]] * (2 * layers)
    shapes += [[-1, heads, head, -1], [-1, heads, -1, head]] * layers
    for port, name in zip([*model.inputs, *model.outputs], [*names, *outputs], strict=True):
        port.get_tensor().set_names({name})
    model.reshape({name: ov.PartialShape(shape) for name, shape in zip(names, shapes, strict=True)})
    offline.apply_make_stateful_transformation(model, {f"past.{n}": f"present.{n}" for n in both})
    _begin_empty(model, heads, head)
    return model


def _begin_empty(model: ov.Model, heads: int, head: int) -> None:
    """Say what the state is before the first step: nothing, for as many rows as there are.

    OpenVINO only joins state, reordering and attention into its one fast kernel when the state says how it begins.
    """
    from openvino import opset13 as opset

    rows = opset.shape_of(model.input("parents"), output_type="i64")
    shape = opset.concat([rows, opset.constant(np.array([heads, 0, head], dtype=np.int64))], 0)
    empty = opset.broadcast(opset.constant(np.float32(0)), shape)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty])
    model.validate_nodes_and_infer_types()
