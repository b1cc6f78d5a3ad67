"""The names of tensors: what the original layout calls each, and what transformers' native network calls it."""

from __future__ import annotations

import re

# In this order. The tensor `image_projection` also changes its shape: see TRANSPOSED.
_TO_NATIVE = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vision_tower\.convs\.(\d+)\.proj\.", r"model.vision_tower.convs.\1.conv."),
        (r"\.fn\.dw\.", r"."),
        (r"\.window_attn\.norm\.|\.channel_attn\.norm\.", r".norm1."),
        (r"\.ffn\.norm\.", r".norm2."),
        (r"\.(window_attn|channel_attn)\.fn\.", r".\1."),
        (r"\.ffn\.fn\.net\.", r".ffn."),
        (r"^vision_tower\.", r"model.vision_tower."),
        (r"^image_proj_norm\.", r"model.multi_modal_projector.image_proj_norm."),
        (r"^image_pos_embed\.", r"model.multi_modal_projector.image_position_embed."),
        (r"^visual_temporal_embed\.", r"model.multi_modal_projector.visual_temporal_embed."),
        (r"^language_model\.model\.", r"model.language_model."),
        (r"^language_model\.lm_head\.", r"lm_head."),
        (r"^image_projection$", r"model.multi_modal_projector.image_projection.weight"),
    )
)
# The way back, for error messages alone: a person looks for the name that the file should have had.
_TO_ORIGINAL = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.multi_modal_projector\.image_projection\.weight$", r"image_projection"),
        (r"^model\.multi_modal_projector\.image_position_embed\.", r"image_pos_embed."),
        (r"^model\.multi_modal_projector\.", r""),
        (r"^model\.language_model\.", r"language_model.model."),
        (r"^lm_head\.", r"language_model.lm_head."),
        (r"^model\.vision_tower\.convs\.(\d+)\.conv\.", r"vision_tower.convs.\1.proj."),
        (r"^model\.vision_tower\.", r"vision_tower."),
        (r"(_block\.conv\d)\.", r"\1.fn.dw."),
        (r"\.(window_attn|channel_attn)\.", r".\1.fn."),
        (r"\.ffn\.(fc\d)\.", r".ffn.fn.net.\1."),
        (r"spatial_block\.norm1\.", r"spatial_block.window_attn.norm."),
        (r"channel_block\.norm1\.", r"channel_block.channel_attn.norm."),
        (r"_block\.norm2\.", r"_block.ffn.norm."),
    )
)

TRANSPOSED = "model.multi_modal_projector.image_projection.weight"
SHARED_EMBEDDING = "model.language_model.shared.weight"
TIED_TO_SHARED = (
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
COSINE_TABLE = "model.multi_modal_projector.visual_temporal_embed.pos_idx_to_embed"
_LOGITS_BIAS = ("language_model.final_logits_bias", "model.language_model.final_logits_bias", "final_logits_bias")


def native_name(name: str) -> str | None:
    """Rename a tensor of the original layout; None for `final_logits_bias`, which is always zero and is dropped."""
    if name in _LOGITS_BIAS:
        return None
    for pattern, replacement in _TO_NATIVE:
        name = pattern.sub(replacement, name)
    return name


def original_name(name: str) -> str:
    """Rename a native tensor to what the original layout calls it."""
    for pattern, replacement in _TO_ORIGINAL:
        name = pattern.sub(replacement, name)
    return name
