"""Florence-2 itself, in torch: DaViT sees the picture, a projector hands its tokens on, BART reads and writes.

Modules are named as the native layout names their weights. Shapes: B pictures, H × W tokens, C channels, T tokens of
text, D the width of BART, R rows that are decoded, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.layout import Layout

# BART's tables of positions begin with two rows that nobody uses.
POSITION_OFFSET = 2

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


class Mlp(nn.Module):
    """Two linear layers with an activation between; works on the last dimension."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self._activate = _ACTIVATIONS[activation]

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
        self.qkv = nn.Linear(width, 3 * width, bias=has_bias)
        self.proj = nn.Linear(width, width)
        self._heads, self._window = heads, window

    def forward(self, tokens: Tensor) -> Tensor:
        _, height, width, _ = tokens.shape
        side = self._window
        tokens = functional.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = tokens.shape[1] // side, tokens.shape[2] // side
        windows = tokens.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3).flatten(3, 4)
        query, key, value = self.qkv(windows.flatten(0, 2)).unflatten(2, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        windows = self.proj(seen.transpose(1, 2).flatten(2))
        grid = windows.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
        return grid.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class ChannelAttention(nn.Module):
    """Attention among channels: each group's C × C scores come from all tokens at once."""

    def __init__(self, width: int, groups: int, has_bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=has_bias)
        self.proj = nn.Linear(width, width)
        self._groups = groups

    def forward(self, tokens: Tensor) -> Tensor:
        _, height, width, _ = tokens.shape
        query, key, value = self.qkv(tokens.flatten(1, 2)).unflatten(2, (3, self._groups, -1)).permute(2, 0, 3, 4, 1)
        scores = (query * (height * width) ** -0.5) @ key.transpose(-1, -2)
        seen = scores.softmax(dim=-1) @ value
        return self.proj(seen.permute(0, 3, 1, 2).flatten(2)).unflatten(1, (height, width))


class VisionBlock(nn.Module):
    """Attention and an MLP, each after a depthwise convolution. attention: the name that the weights have for it."""

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
        tokens = tokens + self.conv1(tokens)
        tokens = tokens + self.get_submodule(self._attention)(self.norm1(tokens))
        tokens = tokens + self.conv2(tokens)
        return tokens + self.ffn(self.norm2(tokens))


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
        self.image_position_embed.row_embeddings = nn.Embedding(positions, width // 2)
        self.image_position_embed.column_embeddings = nn.Embedding(positions, width - width // 2)
        self.visual_temporal_embed = nn.Module()
        frames = torch.empty(vision["max_temporal_embeddings"], width)
        self.visual_temporal_embed.register_buffer("pos_idx_to_embed", frames)
        self.image_projection = nn.Linear(width, vision["projection_dim"], bias=False)
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


class Attention(nn.Module):
    """BART's attention: the projections, and what is done with them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self._heads = heads

    def heads_of(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, heads, T, D / heads)."""
        return tokens.unflatten(-1, (self._heads, -1)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """All (B, heads, T, D / heads); mask (B, 1, 1, T) is true where a token may be seen. Gives (B, T, D)."""
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and an MLP, each followed by its norm."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width = text["d_model"]
        self.self_attn = Attention(width, text["encoder_attention_heads"])
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, text["encoder_ffn_dim"])
        self.fc2 = nn.Linear(text["encoder_ffn_dim"], width)
        self.final_layer_norm = nn.LayerNorm(width)
        self._activate = _ACTIVATIONS[text["activation_function"]]

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        attention = self.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (attention.heads_of(projection(tokens)) for projection in projections)
        tokens = self.self_attn_layer_norm(tokens + attention.attend(query, key, value, mask))
        return self.final_layer_norm(tokens + self.fc2(self._activate(self.fc1(tokens))))


@dataclass
class Memory:
    """What the decoder sees of pictures and prompts: each layer's keys and values, computed once, shared by all beams.

    keys, values: per layer (B, heads, S, D / heads). mask: (B, 1, 1, S), true where there is a token; None: everywhere.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None

    def select(self, pictures: list[int]) -> Memory:
        """Keep some of the B, in this order."""
        mask = None if self.mask is None else self.mask[pictures]
        return Memory([key[pictures] for key in self.keys], [value[pictures] for value in self.values], mask)


@dataclass
class Cache:
    """What the decoder has written: keys and values of all layers, (layers, R, heads, room, D / heads)."""

    keys: Tensor
    values: Tensor

    def reorder(self, rows: list[int], written: int) -> None:
        """Let row r go on from what row `rows[r]` has written so far; fewer rows than before drop the others."""
        if rows == list(range(self.keys.shape[1])):
            return
        if len(rows) < self.keys.shape[1]:
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]
            return
        for table in (self.keys, self.values):
            table[:, :, :, :written] = table[:, rows, :, :written]

    def make_room(self, needed: int) -> None:
        """Double the room when `needed` tokens do not fit: most answers are short, and the longest costs much more."""
        room = self.keys.shape[3]
        if needed > room:
            more = max(room, needed - room)
            self.keys, self.values = (functional.pad(table, (0, 0, 0, more)) for table in (self.keys, self.values))


class DecoderLayer(nn.Module):
    """Attention to what was written, attention to picture and prompt, an MLP; a norm after each."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width, heads = text["d_model"], text["decoder_attention_heads"]
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, text["decoder_ffn_dim"])
        self.fc2 = nn.Linear(text["decoder_ffn_dim"], width)
        self.final_layer_norm = nn.LayerNorm(width)
        self._activate = _ACTIVATIONS[text["activation_function"]]

    def forward(
        self, tokens: Tensor, own: tuple[Tensor, Tensor], at: int, seen: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """tokens: (R, 1, D). own: keys and values (R, heads, room, d), of which `at` tokens are written."""
        attention = self.self_attn
        query = attention.heads_of(attention.q_proj(tokens))
        for table, projection in zip(own, (attention.k_proj, attention.v_proj), strict=True):
            table[:, :, at : at + 1] = attention.heads_of(projection(tokens))
        keys, values = (table[:, :, : at + 1] for table in own)
        tokens = self.self_attn_layer_norm(tokens + attention.attend(query, keys, values, None))
        tokens = self.encoder_attn_layer_norm(tokens + self._look(tokens, seen, mask))
        return self.final_layer_norm(tokens + self.fc2(self._activate(self.fc1(tokens))))

    def _look(self, tokens: Tensor, seen: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Attend to picture and prompt. The beams of one picture are queries of one attention: (B, beams, D)."""
        pictures = seen[0].shape[0]
        beams = tokens.view(pictures, -1, tokens.shape[-1])
        query = self.encoder_attn.heads_of(self.encoder_attn.q_proj(beams))
        return self.encoder_attn.attend(query, seen[0], seen[1], mask).view_as(tokens)


class Encoder(nn.Module):
    """Reads the picture's tokens and the prompt's behind them: (B, S, D) to (B, S, D)."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width = text["d_model"]
        self.embed_positions = nn.Embedding(text["max_position_embeddings"] + POSITION_OFFSET, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(text) for _ in range(text["encoder_layers"]))

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        positions = self.embed_positions.weight[POSITION_OFFSET : POSITION_OFFSET + tokens.shape[1]]
        tokens = self.layernorm_embedding(tokens + positions)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return tokens


class Decoder(nn.Module):
    """Writes one token at a time."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width = text["d_model"]
        self.embed_positions = nn.Embedding(text["max_position_embeddings"] + POSITION_OFFSET, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(DecoderLayer(text) for _ in range(text["decoder_layers"]))

    def forward(self, embedded: Tensor, cache: Cache, at: int, memory: Memory) -> Tensor:
        """embedded: (R, 1, D), the tokens at position `at`; (R, 1, D)."""
        tokens = self.layernorm_embedding(embedded + self.embed_positions.weight[POSITION_OFFSET + at])
        for number, layer in enumerate(self.layers):
            own = (cache.keys[number], cache.values[number])
            tokens = layer(tokens, own, at, (memory.keys[number], memory.values[number]), memory.mask)
        return tokens


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
