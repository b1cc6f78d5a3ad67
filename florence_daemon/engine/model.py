"""Florence-2 itself, in torch: sees a picture, reads a prompt, writes the answer; and its weights from a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from florence_daemon.engine.bart import Cache, Decoder, Encoder, Memory
from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.davit import DaViT, Projector
from florence_daemon.engine.layout import Layout


class Florence2(nn.Module):
    """The whole network. `see`, `read`, `write`: the three things it does."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        text = layout.text
        self.text = text
        self.vision_tower = DaViT(layout.vision)
        self.multi_modal_projector = Projector(layout.vision)
        self.shared = nn.Embedding(text["vocab_size"], text["d_model"])
        self.encoder = Encoder(text)
        self.decoder = Decoder(text)
        self._scale = text["d_model"] ** 0.5 if text["scale_embedding"] else 1.0

    def see(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), normalised, to the tokens that BART reads: (B, image tokens, D)."""
        return self.multi_modal_projector(self.vision_tower(pixels))

    def read(self, features: Tensor, prompts: Tensor, mask: Tensor | None = None) -> Memory:
        """Picture tokens (B, I, D) and prompts (B, T) to what the decoder sees. mask: (B, T), false at padding."""
        tokens = torch.cat([features, self.shared(prompts) * self._scale], dim=1)
        if mask is not None:
            mask = functional.pad(mask, (features.shape[1], 0), value=True)[:, None, None]
        encoded = self.encoder(tokens, mask)
        attentions = [layer.encoder_attn for layer in self.decoder.layers]
        keys = [attention.heads_of(attention.k_proj(encoded)) for attention in attentions]
        values = [attention.heads_of(attention.v_proj(encoded)) for attention in attentions]
        return Memory(keys, values, mask)

    def new_cache(self, rows: int, room: int) -> Cache:
        """Room for `room` tokens in each of `rows` answers."""
        heads, width = self.text["decoder_attention_heads"], self.text["d_model"]
        shape = (self.text["decoder_layers"], rows, heads, room, width // heads)
        return Cache(self.shared.weight.new_empty(shape), self.shared.weight.new_empty(shape))

    def write(self, tokens: Tensor, cache: Cache, at: int, memory: Memory) -> Tensor:
        """Read the tokens (R,) at position `at`, give the logits (R, V) of the next. R is B × beams, beams together."""
        embedded = self.shared(tokens)[:, None] * self._scale
        return functional.linear(self.decoder(embedded, cache, at, memory)[:, 0], self.shared.weight)


def load_network(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> Florence2:
    """Build the network without memory of its own, and give it the checkpoint's weights.

    Raises:
        CheckpointError: a tensor is unknown, missing or misshapen, or a file is broken.
    """
    weights = checkpoint.read_weights(dtype, device)
    with torch.device("meta"):
        network = Florence2(checkpoint.layout)
    network.load_state_dict({native_to_ours(name): value for name, value in weights.items()}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def native_to_ours(name: str) -> str:
    """The name of a tensor without the levels that only transformers has."""
    return name.removeprefix("model.").removeprefix("language_model.")
