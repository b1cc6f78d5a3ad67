"""Florence-2 itself, in torch: sees a picture, reads a prompt, writes the answer; and its weights from a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from florence_daemon.engine.bart import Decoder, Encoder, Memory, Written
from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.davit import DaViT, Projector, embedding
from florence_daemon.engine.layout import Layout
from florence_daemon.engine.products import linear


class Florence2(nn.Module):
    """The whole network. `see`, `read`, `write`: the three things it does."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        text = layout.text
        self.vision_tower = DaViT(layout.vision)
        self.multi_modal_projector = Projector(layout.vision)
        self.shared = embedding(text["vocab_size"], text["d_model"])
        self.encoder = Encoder(text)
        self.decoder = Decoder(text)
        self._scale = text["d_model"] ** 0.5 if text["scale_embedding"] else 1.0

    def see(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), normalised, to the tokens that BART reads: (B, image tokens, D)."""
        return self.multi_modal_projector(self.vision_tower(pixels))

    def read(self, features: Tensor, prompts: Tensor) -> Memory:
        """Picture tokens (B, I, D) and prompts (B, T) to what the decoder sees of them."""
        tokens = torch.cat([features, self.shared(prompts) * self._scale], dim=1)
        return self.decoder.remember(self.encoder(tokens))

    def write(self, ids: Tensor, ages: Tensor, written: Written, memory: Memory) -> Tensor:
        """Read each row's last token, (Q, W), behind `ages` others, (Q,); give the logits of the next: (R, V)."""
        tokens = self.decoder(self.shared(ids) * self._scale, ages, written, memory)
        return linear(tokens.flatten(0, 1), self.shared.weight)


def load_network(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> Florence2:
    """Build the network without memory of its own, and give it the checkpoint's weights.

    On a CPU, weights that have this dtype in the file stay views of the file's memory map.

    Raises:
        CheckpointError: a tensor is unknown, missing or misshapen, or a file is broken.
    """
    weights = checkpoint.read_weights(dtype, device, fused_names(checkpoint.layout))
    with torch.device("meta"):
        network = Florence2(checkpoint.layout)
    network.load_state_dict({native_to_ours(name): value for name, value in weights.items()}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def fused_names(layout: Layout) -> dict[str, list[str]]:
    """The tensors that are read as one, along their first dimension: its name, and theirs."""
    fused = {}
    language = "model.language_model"
    for kind in ("weight", "bias"):
        for side in ("encoder", "decoder"):
            for layer in range(layout.text[f"{side}_layers"]):
                attention = f"{language}.{side}.layers.{layer}.self_attn"
                fused[f"{attention}.qkv_proj.{kind}"] = [f"{attention}.{part}_proj.{kind}" for part in "qkv"]
        fused[f"{language}.decoder.memory_proj.{kind}"] = [
            f"{language}.decoder.layers.{layer}.encoder_attn.{part}_proj.{kind}"
            for layer in range(layout.text["decoder_layers"])
            for part in "kv"
        ]
    return fused


def native_to_ours(name: str) -> str:
    """The name of a tensor without the levels that only transformers has."""
    return name.removeprefix("model.").removeprefix("language_model.")
