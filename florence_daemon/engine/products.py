"""The products of tokens and weights, which are nine tenths of the arithmetic, done by the library that is quickest."""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn
from torch.nn import functional

# oneDNN's product, which torch's compiler takes for linear layers on a CPU. functional.linear takes MKL's, which uses
# half of what AMD's processors can: 200 GFLOP/s for a picture's tokens instead of 430, and 0.20 ms for a layer of the
# 24 rows that eight questions' beams are, instead of 0.13. None where this torch has no such thing.
ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
    else None
)


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """functional.linear, by oneDNN where that can be: in inference with float32 on a CPU of x86."""
    is_known = tokens.device.type == "cpu" and tokens.dtype == torch.float32
    if ONEDNN is None or not is_known or torch.is_grad_enabled() or torch.jit.is_tracing():
        return functional.linear(tokens, weight, bias)
    return ONEDNN(tokens, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """A linear layer."""

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(tokens, self.weight, self.bias)
