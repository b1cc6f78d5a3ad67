"""How a step of the torch decoder is run: as it is written, or as a CUDA graph that was captured from it once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Offered(NamedTuple):
    """What a step gives on the device: logits (R, V) float32, the likeliest (R, K), their ids (R, K), log_norm (R,)."""

    logits: Tensor
    likeliest: Tensor
    ids: Tensor
    log_norm: Tensor


class Runner(Protocol):
    """Runs steps. Those of one shape (slots, columns) do the same over the same memory, until that is forgotten."""

    def run(self, step: Callable[[], Offered], shape: tuple[int, int]) -> Offered:
        """Run a step; what it gives may be overwritten by the next."""

    def forget(self) -> None:
        """Learn that steps use other memory from now on."""


class Eager:
    """Runs each step as it is written."""

    def run(self, step: Callable[[], Offered], shape: tuple[int, int]) -> Offered:
        """Run a step."""
        del shape
        return step()

    def forget(self) -> None:
        """Nothing is kept that could be forgotten."""


class CudaGraphs:
    """Captures the first step of every shape and replays it: one launch where there were hundreds."""

    # Before a capture, libraries must have chosen their algorithms and taken their workspaces: those are not captured.
    WARM_UPS = 2

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._captured: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Offered]] = {}

    def run(self, step: Callable[[], Offered], shape: tuple[int, int]) -> Offered:
        """Replay the step of this shape."""
        if shape not in self._captured:
            self._captured[shape] = self._capture(step)
        graph, offered = self._captured[shape]
        graph.replay()
        return offered

    def forget(self) -> None:
        """Drop all graphs, and the memory that they gave their results in."""
        self._captured.clear()

    def _capture(self, step: Callable[[], Offered]) -> tuple[torch.cuda.CUDAGraph, Offered]:
        """Record a step. It only writes what it is going to write anyway, so that it can be run several times."""
        # Not told, torch captures on a stream of the first GPU, which sees nothing of what another one does.
        with torch.cuda.device(self._device):
            stream, outer = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(outer)
            with torch.cuda.stream(stream):
                for _ in range(self.WARM_UPS):
                    step()
            outer.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                offered = step()
        return graph, offered
