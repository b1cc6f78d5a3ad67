"""Runs our own Florence-2 in torch, on any of its devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.model import load_network
from florence_daemon.engine.runners import CudaGraphs, Eager
from florence_daemon.engine.torch_decoder import TorchDecoder

# Pictures seen at once on a GPU: as many as keep it busy.
GPU_PICTURES = 8
# Tokens of a prompt, for the memory that a question takes: most tasks have 10.
_PROMPT_TOKENS = 32


class TorchBackend:
    """Our network with a checkpoint's weights; see `decoder.Backend`.

    is_static: decode in few fixed shapes, as CUDA graphs need it; None does so on CUDA.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, *, is_static: bool | None = None
    ) -> None:
        self.device = device
        self.precision = str(dtype).removeprefix("torch.")
        self.picture_batch = 1 if device == "cpu" else GPU_PICTURES
        self._network = load_network(checkpoint, device, dtype)
        self._dtype = dtype
        self._layout = checkpoint.layout
        self._is_cuda = device.startswith("cuda")
        self._is_static = self._is_cuda if is_static is None else is_static

    def see(self, pixels: NDArray[np.float32]) -> Sequence[Tensor]:
        """Run the vision part: pixels (B, 3, S, S), normalised, to B features (image tokens, width) on the device."""
        source = torch.from_numpy(pixels)
        if self._is_cuda:
            source = source.pin_memory()
        with torch.inference_mode():
            features = self._network.see(source.to(self.device, non_blocking=self._is_cuda).to(self._dtype))
        self._wait()
        return features.unbind(0)

    def new_decoder(self) -> TorchDecoder:
        """Begin with no questions."""
        runner = CudaGraphs(self.device) if self._is_cuda else Eager()
        return TorchDecoder(self._network, self._layout, runner, is_static=self._is_static)

    def question_bytes(self, beams: int, tokens: int) -> int:
        """Memory that one question takes while it is decoded: what it has read and written, and its logits twice."""
        text = self._layout.text
        length = self._layout.image_tokens + _PROMPT_TOKENS
        kept = 2 * text["decoder_layers"] * text["d_model"] * (length + beams * tokens)
        return kept * self._dtype.itemsize + 2 * 4 * beams * self._layout.vocab_size

    def _wait(self) -> None:
        """Let the GPU finish, so that each stage is charged with its own seconds."""
        if self._is_cuda:
            torch.cuda.synchronize(self.device)
        elif self.device == "mps":
            torch.mps.synchronize()
