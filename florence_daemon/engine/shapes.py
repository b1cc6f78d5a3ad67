"""Every tensor a Florence-2 has, under its native name, with its shape: what a checkpoint must bring, and no more."""

from __future__ import annotations

from collections.abc import Iterator

from florence_daemon.engine.layout import Layout
from florence_daemon.engine.names import COSINE_TABLE, SHARED_EMBEDDING, TRANSPOSED

Shape = tuple[int, ...]
_POSITION_OFFSET = 2  # BART's position tables begin with two rows that nothing uses.


def expected_shapes(layout: Layout) -> dict[str, Shape]:
    """List the tensors of a network as its file has them; tied copies of the embedding are left out."""
    return dict(_vision_tower(layout)) | dict(_projector(layout)) | dict(_language_model(layout))


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, into: int, out_of: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (into, out_of)
    yield f"{name}.bias", (into,)


def _vision_tower(layout: Layout) -> Iterator[tuple[str, Shape]]:
    vision = layout.vision
    tower = "model.vision_tower"
    before = 3
    for stage, width in enumerate(vision["embed_dim"]):
        patch = vision["patch_size"][stage]
        yield f"{tower}.convs.{stage}.conv.weight", (width, before, patch, patch)
        yield f"{tower}.convs.{stage}.conv.bias", (width,)
        yield from _norm(f"{tower}.convs.{stage}.norm", before if vision["patch_prenorm"][stage] else width)
        for depth in range(vision["depths"][stage]):
            for block in ("spatial", "channel"):
                yield from _block(f"{tower}.blocks.{stage}.{depth}.{block}_block", block, width, layout)
        before = width


def _block(name: str, kind: str, width: int, layout: Layout) -> Iterator[tuple[str, Shape]]:
    attention = f"{name}.{'window' if kind == 'spatial' else 'channel'}_attn"
    hidden = int(width * layout.vision.get("mlp_ratio", 4.0))
    for conv in ("conv1", "conv2"):
        yield f"{name}.{conv}.weight", (width, 1, 3, 3)
        yield f"{name}.{conv}.bias", (width,)
    yield from _norm(f"{name}.norm1", width)
    yield from _norm(f"{name}.norm2", width)
    yield f"{attention}.qkv.weight", (3 * width, width)
    if layout.vision.get("qkv_bias", True):
        yield f"{attention}.qkv.bias", (3 * width,)
    yield from _linear(f"{attention}.proj", width, width)
    yield from _linear(f"{name}.ffn.fc1", hidden, width)
    yield from _linear(f"{name}.ffn.fc2", width, hidden)


def _projector(layout: Layout) -> Iterator[tuple[str, Shape]]:
    width, projection = layout.vision["embed_dim"][-1], layout.vision["projection_dim"]
    positions = layout.vision["max_position_embeddings"]
    yield TRANSPOSED, (projection, width)
    yield from _norm("model.multi_modal_projector.image_proj_norm", projection)
    for axis in ("row", "column"):
        yield f"model.multi_modal_projector.image_position_embed.{axis}_embeddings.weight", (positions, width // 2)
    yield COSINE_TABLE, (layout.vision["max_temporal_embeddings"], width)


def _language_model(layout: Layout) -> Iterator[tuple[str, Shape]]:
    width = layout.text["d_model"]
    yield SHARED_EMBEDDING, (layout.vocab_size, width)
    for side in ("encoder", "decoder"):
        name = f"model.language_model.{side}"
        yield f"{name}.embed_positions.weight", (layout.max_positions + _POSITION_OFFSET, width)
        yield from _norm(f"{name}.layernorm_embedding", width)
        for depth in range(layout.text[f"{side}_layers"]):
            yield from _bart_layer(f"{name}.layers.{depth}", side, width, layout.text[f"{side}_ffn_dim"])


def _bart_layer(name: str, side: str, width: int, hidden: int) -> Iterator[tuple[str, Shape]]:
    for attention in ("self_attn", "encoder_attn") if side == "decoder" else ("self_attn",):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{name}.{attention}.{projection}", width, width)
        yield from _norm(f"{name}.{attention}_layer_norm", width)
    yield from _linear(f"{name}.fc1", hidden, width)
    yield from _linear(f"{name}.fc2", width, hidden)
    yield from _norm(f"{name}.final_layer_norm", width)
