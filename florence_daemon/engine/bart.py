"""How Florence-2 reads and writes, in torch: BART's encoder over picture and prompt, its decoder a token at a time.

Modules are named as the native layout names their weights, but for products that are made at once: `fused_names` of
`model.py`. Shapes: B pictures, T tokens of text, S of picture and text, D the width, d that of a head; Q questions that
are decoded with W beams each, R = Q × W rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.nn import functional

from florence_daemon.engine.davit import ACTIVATIONS, embedding
from florence_daemon.engine.products import Linear

# BART's tables of positions begin with two rows that nobody uses.
POSITION_OFFSET = 2


class SelfAttention(nn.Module):
    """Attention among tokens; queries, keys and values are one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv_proj = Linear(width, 3 * width)
        self.out_proj = Linear(width, width)
        self._heads = heads

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) to queries, keys and values, each (B, heads, T, d)."""
        query, key, value = self.qkv_proj(tokens).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, T, d) to (B, T, D). mask: (B, 1, 1, T), true where a token may be seen; None, everywhere."""
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to picture and prompt; their keys and values come from `Decoder.remember`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)
        self._heads = heads

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Let a question's beams be queries of one attention. tokens: (Q, W, D); keys, values: (Q, heads, S, d)."""
        query = self.q_proj(tokens).unflatten(-1, (self._heads, -1)).transpose(1, 2)
        seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and an MLP, each followed by its norm."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width = text["d_model"]
        self.self_attn = SelfAttention(width, text["encoder_attention_heads"])
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, text["encoder_ffn_dim"])
        self.fc2 = Linear(text["encoder_ffn_dim"], width)
        self.final_layer_norm = nn.LayerNorm(width)
        self._activate = ACTIVATIONS[text["activation_function"]]

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.self_attn.attend(*self.self_attn.project(tokens), mask)
        tokens = self.self_attn_layer_norm(tokens + attended)
        return self.final_layer_norm(tokens + self.fc2(self._activate(self.fc1(tokens))))


class Written(Protocol):
    """What the rows have written so far. mask: (R, 1, 1, T), true where a row's own tokens are; None: everywhere."""

    mask: Tensor | None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add each row's new token, (R, heads, 1, d); gives all that a layer has now, (R, heads, T, d)."""


class Memory(NamedTuple):
    """What is seen of pictures and prompts, computed once and shared by a question's beams.

    keys, values: (layers, Q, heads, S, d). mask: (Q, 1, 1, S), true where there is a token; None: everywhere.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class DecoderLayer(nn.Module):
    """Attention to what was written, attention to picture and prompt, an MLP; a norm after each."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width, heads = text["d_model"], text["decoder_attention_heads"]
        self.self_attn = SelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = CrossAttention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, text["decoder_ffn_dim"])
        self.fc2 = Linear(text["decoder_ffn_dim"], width)
        self.final_layer_norm = nn.LayerNorm(width)
        self._activate = ACTIVATIONS[text["activation_function"]]

    def forward(self, tokens: Tensor, layer: int, written: Written, memory: Memory) -> Tensor:
        """tokens: (Q, W, D), the last one of each row. layer: the number of this one."""
        query, key, value = self.self_attn.project(tokens.flatten(0, 1).unsqueeze(1))
        keys, values = written.extend(layer, key, value)
        own = self.self_attn.attend(query, keys, values, written.mask).view_as(tokens)
        tokens = self.self_attn_layer_norm(tokens + own)
        seen = self.encoder_attn(tokens, memory.keys[layer], memory.values[layer], memory.mask)
        tokens = self.encoder_attn_layer_norm(tokens + seen)
        return self.final_layer_norm(tokens + self.fc2(self._activate(self.fc1(tokens))))


class Encoder(nn.Module):
    """Reads the picture's tokens and the prompt's behind them: (B, S, D) to (B, S, D)."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width = text["d_model"]
        self.embed_positions = embedding(text["max_position_embeddings"] + POSITION_OFFSET, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(text) for _ in range(text["encoder_layers"]))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        positions = self.embed_positions.weight[POSITION_OFFSET : POSITION_OFFSET + tokens.shape[1]]
        tokens = self.layernorm_embedding(tokens + positions)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return tokens


class Decoder(nn.Module):
    """Writes one token at a time, of answers of any ages."""

    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width = text["d_model"]
        self.embed_positions = embedding(text["max_position_embeddings"] + POSITION_OFFSET, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(DecoderLayer(text) for _ in range(text["decoder_layers"]))
        # The keys and values of every layer's CrossAttention, in one product.
        self.memory_proj = Linear(width, len(self.layers) * 2 * width)
        self._heads = text["decoder_attention_heads"]

    def remember(self, encoded: Tensor) -> Memory:
        """What the encoder read, (B, S, D), as the layers' keys and values."""
        parts = self.memory_proj(encoded).unflatten(-1, (len(self.layers), 2, self._heads, -1))
        keys, values = parts.permute(3, 2, 0, 4, 1, 5)
        return Memory(keys, values, None)

    def forward(self, embedded: Tensor, ages: Tensor, written: Written, memory: Memory) -> Tensor:
        """embedded: (Q, W, D), each row's last token. ages: (Q,), the tokens before it. Gives (Q, W, D)."""
        positions = self.embed_positions(ages + POSITION_OFFSET).unsqueeze(1)
        tokens = self.layernorm_embedding(embedded + positions)
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, number, written, memory)
        return tokens
