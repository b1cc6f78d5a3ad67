"""How Florence-2 sees, in torch: DaViT turns a picture into tokens, a projector makes them words to BART.

Modules are named as the native layout names their weights. Shapes: B pictures, H × W tokens, C channels, D the width of
BART.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from florence_daemon.engine.products import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def embedding(entries: int, width: int) -> nn.Embedding:
    """A table that waits for its weights.

    Its own random ones, on the device `meta`, would make torch import its compiler: 100 MB and up to 7 s of a load.
    """
    return nn.Embedding.from_pretrained(torch.empty(entries, width))


class Mlp(nn.Module):
    """Two linear layers with an activation between; works on the last dimension."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self._activate = ACTIVATIONS[activation]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self._activate(self.fc1(tokens)))


class Convolution(nn.Conv2d):
    """A convolution over tokens (B, H, W, C): the permuted view is channels-last already, so nothing is copied."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PatchEmbedding(nn.Module):
    """Begins a stage: fewer, wider tokens. (B, H, W, C) to (B, H / stride, W / stride, width)."""

    def __init__(self, vision: dict[str, Any], stage: int) -> None:
        super().__init__()
        width = vision["embed_dim"][stage]
        width_before = 3 if stage == 0 else vision["embed_dim"][stage - 1]
        self._is_normalised_first = vision["patch_prenorm"][stage]
        self.conv = Convolution(
            width_before,
            width,
            vision["patch_size"][stage],
            vision["patch_stride"][stage],
            vision["patch_padding"][stage],
        )
        self.norm = nn.LayerNorm(width_before if self._is_normalised_first else width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.conv(self.norm(tokens)) if self._is_normalised_first else self.norm(self.conv(tokens))


class WindowAttention(nn.Module):
    """Attention among the tokens of each square window; borders are padded with zeros, as in the original."""

    def __init__(self, width: int, heads: int, window: int, has_bias: bool) -> None:
        super().__init__()
        self.qkv = Linear(width, 3 * width, bias=has_bias)
        self.proj = Linear(width, width)
        self._heads, self._window = heads, window

    def forward(self, tokens: Tensor) -> Tensor:
        _, height, width, _ = tokens.shape
        side = self._window
        tokens = functional.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = tokens.shape[1] // side, tokens.shape[2] // side
        windows = tokens.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3).flatten(3, 4)
        parts = self.qkv(windows.flatten(0, 2)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(query, key, value)
        windows = self.proj(seen.transpose(1, 2).flatten(2))
        grid = windows.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
        return grid.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class ChannelAttention(nn.Module):
    """Attention among channels: each group's C × C scores come from all tokens at once."""

    def __init__(self, width: int, groups: int, has_bias: bool) -> None:
        super().__init__()
        self.qkv = Linear(width, 3 * width, bias=has_bias)
        self.proj = Linear(width, width)
        self._groups = groups

    def forward(self, tokens: Tensor) -> Tensor:
        _, height, width, _ = tokens.shape
        parts = self.qkv(tokens.flatten(1, 2)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self._groups, -1)).transpose(1, 2) for part in parts)
        scores = (query * (height * width) ** -0.5).transpose(-1, -2) @ key
        # Turned, (tokens, channels), so that nothing large is transposed: tokens are many, a group's channels 32.
        seen = value @ scores.softmax(dim=-1).transpose(-1, -2)
        return self.proj(seen.transpose(1, 2).flatten(2)).unflatten(1, (height, width))


class VisionBlock(nn.Module):
    """Attention and an MLP, each after a depthwise convolution. attention: the name that the weights have for it.

    What is added is (B, tokens, C): given four dimensions, OpenVINO lays sums out as the convolutions like it, and
    everything between them is reordered to and fro.
    """

    def __init__(self, attention: str, module: nn.Module, width: int, vision: dict[str, Any]) -> None:
        super().__init__()
        self.conv1 = Convolution(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.add_module(attention, module)
        self._attention = attention
        self.conv2 = Convolution(width, width, 3, padding=1, groups=width)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * vision.get("mlp_ratio", 4.0))
        self.ffn = Mlp(width, hidden, vision.get("activation_function", "gelu"))

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.shape[1:3]
        tokens = tokens.flatten(1, 2) + self.conv1(tokens).flatten(1, 2)
        attended = self.get_submodule(self._attention)(self.norm1(tokens).unflatten(1, size))
        tokens = tokens + attended.flatten(1, 2)
        tokens = tokens + self.conv2(tokens.unflatten(1, size)).flatten(1, 2)
        return (tokens + self.ffn(self.norm2(tokens))).unflatten(1, size)


class DaViT(nn.Module):
    """The vision tower: pixels (B, 3, S, S), normalised, to tokens (B, S / 32, S / 32, C)."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        stages = range(len(vision["embed_dim"]))
        self.convs = nn.ModuleList(PatchEmbedding(vision, stage) for stage in stages)
        self.blocks = nn.ModuleList(
            nn.ModuleList(TwinBlocks(vision, stage) for _ in range(vision["depths"][stage])) for stage in stages
        )

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = pixels.permute(0, 2, 3, 1)
        for embedding, blocks in zip(self.convs, self.blocks, strict=True):
            tokens = embedding(tokens)
            for block in blocks:
                tokens = block(tokens)
        return tokens


class TwinBlocks(nn.Module):
    """What a stage repeats: attention within windows, then attention among channels."""

    def __init__(self, vision: dict[str, Any], stage: int) -> None:
        super().__init__()
        width, has_bias = vision["embed_dim"][stage], vision.get("qkv_bias", True)
        heads, groups = vision["num_heads"][stage], vision["num_groups"][stage]
        window = WindowAttention(width, heads, vision["window_size"], has_bias)
        self.spatial_block = VisionBlock("window_attn", window, width, vision)
        self.channel_block = VisionBlock("channel_attn", ChannelAttention(width, groups, has_bias), width, vision)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.channel_block(self.spatial_block(tokens))


class Projector(nn.Module):
    """Hands the picture to BART: (B, H, W, C) to (B, 1 + H · W, D), the mean of all tokens first."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, positions = vision["embed_dim"][-1], vision["max_position_embeddings"]
        self.image_position_embed = nn.Module()
        self.image_position_embed.row_embeddings = embedding(positions, width // 2)
        self.image_position_embed.column_embeddings = embedding(positions, width - width // 2)
        self.visual_temporal_embed = nn.Module()
        frames = torch.empty(vision["max_temporal_embeddings"], width)
        self.visual_temporal_embed.register_buffer("pos_idx_to_embed", frames)
        self.image_projection = Linear(width, vision["projection_dim"], bias=False)
        self.image_proj_norm = nn.LayerNorm(vision["projection_dim"])

    def forward(self, tokens: Tensor) -> Tensor:
        _, height, width, _ = tokens.shape
        rows = self.image_position_embed.row_embeddings.weight[:height, None].expand(-1, width, -1)
        columns = self.image_position_embed.column_embeddings.weight[None, :width].expand(height, -1, -1)
        # A still picture is the first frame of a film.
        tokens = tokens + torch.cat([columns, rows], dim=-1) + self.visual_temporal_embed.pos_idx_to_embed[0]
        tokens = tokens.flatten(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return self.image_proj_norm(self.image_projection(tokens))
