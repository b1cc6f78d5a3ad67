"""How Florence-2 reads and writes, in torch: BART's encoder over picture and prompt, its decoder a token at a time.

Modules are named as the native layout names their weights. Shapes: B pictures, T tokens of text, S of picture and text,
D the width, R rows that are decoded: B × beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from florence_daemon.engine.davit import ACTIVATIONS

# BART's tables of positions begin with two rows that nobody uses.
POSITION_OFFSET = 2


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
        self._activate = ACTIVATIONS[text["activation_function"]]

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
        self._activate = ACTIVATIONS[text["activation_function"]]

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
