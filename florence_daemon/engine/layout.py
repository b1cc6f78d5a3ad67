"""The two layouts of Florence-2: turns the configuration of either into transformers' native one.

Native is `florence-community/*` and what transformers saves since 4.56. Original is `microsoft/Florence-2-*`,
PromptGen and nearly every fine-tune: the same network under other names, with a row less in the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt, prod
from pathlib import Path
from typing import Any

from florence_daemon.engine.files import Fields, read_json, read_json_if_there
from florence_daemon.errors import CheckpointError

_ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")
_IMAGE_SIDE_PX = 768
_MEAN = [0.485, 0.456, 0.406]
_STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Layout:
    """What a checkpoint's JSON says about its network, in transformers' native terms.

    is_original: its tensors have the original names, and its embedding lacks the row of `<image>`.
    vision, text: the arguments of Florence2VisionConfig and BartConfig.
    vocab_size: rows of the embedding as the file has them.
    image_token_id: the row that stands for the picture and must never be generated.
    """

    is_original: bool
    vision: dict[str, Any]
    text: dict[str, Any]
    vocab_size: int
    image_token_id: int
    image_side_px: int

    @property
    def stride_px(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return prod(self.vision["patch_stride"])

    @property
    def image_tokens(self) -> int:
        """Tokens that stand for a picture: one to each patch, and their mean before them."""
        return (self.image_side_px // self.stride_px) ** 2 + 1

    @property
    def max_positions(self) -> int:
        return int(self.text["max_position_embeddings"])

    def with_side(self, side_px: int, prompt_tokens: int) -> Layout:
        """Give the layout for pictures of another side. prompt_tokens: what must fit beside the picture's.

        The convolutions take any multiple of the stride, and smaller pictures use the first rows and columns of the
        position table, as they are.

        Raises:
            CheckpointError: this network cannot read such pictures; the message names the sides that it can.
        """
        rows = min(self.vision["max_position_embeddings"], isqrt(max(self.max_positions - prompt_tokens - 1, 0)))
        if side_px % self.stride_px or not 1 <= side_px // self.stride_px <= rows:
            raise CheckpointError(
                f"model.image_size is {side_px}; this model takes a multiple of {self.stride_px} from {self.stride_px} "
                f"to {rows * self.stride_px} pixels: its position tables have {self.vision['max_position_embeddings']} "
                f"rows for pictures, and {self.max_positions} for a picture and {prompt_tokens} tokens of a prompt. "
                f"Leave it out for {self.image_side_px}, which the model was made for"
            )
        return replace(self, image_side_px=side_px)


@dataclass(frozen=True)
class SearchDefaults:
    """How the checkpoint wants its answers searched: generation_config.json, else text_config, else florence2.md's."""

    num_beams: int
    early_stopping: bool
    no_repeat_ngram_size: int
    length_penalty: float
    decoder_start_token_id: int
    forced_bos_token_id: int
    forced_eos_token_id: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int


def read_layout(directory: Path) -> Layout:
    """Read config.json and preprocessor_config.json of either layout.

    Raises:
        CheckpointError: it is no Florence-2, or a field is unknown or out of range; the field is named.
    """
    path = directory / "config.json"
    config = Fields(path, read_json(path))
    vision, text = config.within("vision_config"), config.within("text_config")
    is_original = "dim_embed" in vision
    if not is_original and "embed_dim" not in vision:
        kind = config.get("model_type", "no model_type")
        raise CheckpointError(f"{path} is not a Florence-2: vision_config has neither dim_embed nor embed_dim ({kind})")
    if not config.truth("tie_word_embeddings", True):
        raise config.refuse("tie_word_embeddings", "true: Florence-2 shares one embedding everywhere")
    native_vision = _original_vision(vision) if is_original else _native_vision(vision)
    native_text, vocab_size = _text(config, text, is_original)
    _check_widths(path, native_vision, native_text)
    image_token_id = vocab_size if is_original else config.whole("image_token_id", 0, vocab_size - 1, 51289)
    side_px = _image_side(directory, native_vision, native_text["max_position_embeddings"])
    return Layout(is_original, native_vision, native_text, vocab_size, image_token_id, side_px)


def read_search_defaults(directory: Path, layout: Layout, special_ids: dict[str, int]) -> SearchDefaults:
    """Read how answers are searched. special_ids: what the tokenizer calls `<s>`, `</s>` and `<pad>`.

    Raises:
        CheckpointError: a value is out of range; the file and the field are named.
    """
    own = directory / "generation_config.json"
    config = directory / "config.json"
    sources = [Fields(own, read_json_if_there(own)), Fields(config, read_json(config)).within("text_config")]

    def source(name: str) -> Fields:
        return next((fields for fields in sources if name in fields), sources[-1])

    def token(name: str, default: int) -> int:
        return source(name).whole(name, 0, layout.vocab_size - 1, default)

    begin, end, pad = special_ids["<s>"], special_ids["</s>"], special_ids["<pad>"]
    return SearchDefaults(
        num_beams=source("num_beams").whole("num_beams", 1, 64, 3),
        early_stopping=source("early_stopping").truth("early_stopping", True),
        no_repeat_ngram_size=source("no_repeat_ngram_size").whole("no_repeat_ngram_size", 0, 1024, 3),
        length_penalty=source("length_penalty").number("length_penalty", -10, 10, 1.0),
        decoder_start_token_id=token("decoder_start_token_id", end),
        forced_bos_token_id=token("forced_bos_token_id", begin),
        forced_eos_token_id=token("forced_eos_token_id", end),
        bos_token_id=token("bos_token_id", begin),
        eos_token_id=token("eos_token_id", end),
        pad_token_id=token("pad_token_id", pad),
    )


def _original_vision(vision: Fields) -> dict[str, Any]:
    temporal, position = vision.within("visual_temporal_embedding"), vision.within("image_pos_embed")
    if temporal.get("type", "COSINE") != "COSINE":
        raise temporal.refuse("type", "COSINE, the only temporal embedding of Florence-2")
    if position.get("type", "learned_abs_2d") != "learned_abs_2d":
        raise position.refuse("type", "learned_abs_2d, the only position embedding of Florence-2")
    sources = ["spatial_avg_pool", "temporal_avg_pool"]
    if vision.get("image_feature_source", sources) != sources:
        raise vision.refuse("image_feature_source", f"{sources}: other features have another network")
    return _stages(vision, "dim_embed") | {
        "max_temporal_embeddings": temporal.whole("max_temporal_embeddings", 1, 10_000, 100),
        "max_position_embeddings": position.whole("max_pos_embeddings", 1, 10_000, 50),
    }


def _native_vision(vision: Fields) -> dict[str, Any]:
    activation = vision.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise vision.refuse("activation_function", f"one of {', '.join(_ACTIVATIONS)}")
    return _stages(vision, "embed_dim") | {
        "max_temporal_embeddings": vision.whole("max_temporal_embeddings", 1, 10_000, 100),
        "max_position_embeddings": vision.whole("max_position_embeddings", 1, 10_000, 50),
        "in_channels": vision.whole("in_channels", 3, 3, 3),
        "mlp_ratio": vision.number("mlp_ratio", 0.25, 64, 4.0),
        "qkv_bias": vision.truth("qkv_bias", True),
        "activation_function": activation,
    }


def _stages(vision: Fields, widths: str) -> dict[str, Any]:
    """Read what both layouts call alike; every list has one entry to a stage."""
    stages = {
        "embed_dim": vision.wholes(widths, 2, 65_536),
        "depths": vision.wholes("depths", 1, 128, [1, 1, 9, 1]),
        "num_heads": vision.wholes("num_heads", 1, 1024),
        "num_groups": vision.wholes("num_groups", 1, 1024),
        "patch_size": vision.wholes("patch_size", 1, 64, [7, 3, 3, 3]),
        "patch_stride": vision.wholes("patch_stride", 1, 64, [4, 2, 2, 2]),
        "patch_padding": vision.wholes("patch_padding", 0, 64, [3, 1, 1, 1]),
    }
    prenorm = vision.get("patch_prenorm", [False, True, True, True])
    if not isinstance(prenorm, list) or not all(isinstance(flag, bool) for flag in prenorm):
        raise vision.refuse("patch_prenorm", "a list of true and false")
    count = len(stages["embed_dim"])
    for name, value in {**stages, "patch_prenorm": prenorm}.items():
        if len(value) != count:
            raise vision.refuse(widths if name == "embed_dim" else name, f"a list of {count}, as {widths} is")
    for width, heads, groups in zip(stages["embed_dim"], stages["num_heads"], stages["num_groups"], strict=True):
        if width % heads or width % groups:
            raise vision.refuse(widths, f"divisible by num_heads and num_groups: {width} by {heads} and {groups}")
    if stages["embed_dim"][-1] % 2:
        raise vision.refuse(widths, "even at its end")
    return stages | {
        "patch_prenorm": prenorm,
        "window_size": vision.whole("window_size", 1, 1024, 12),
        "projection_dim": vision.whole("projection_dim", 1, 65_536),
    }


def _text(config: Fields, text: Fields, is_original: bool) -> tuple[dict[str, Any], int]:
    source = text if "vocab_size" in text else config
    vocab_size = source.whole("vocab_size", 1, 10_000_000)
    activation = text.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise text.refuse("activation_function", f"one of {', '.join(_ACTIVATIONS)}")
    width = text.whole("d_model", 1, 65_536)
    heads = {name: text.whole(name, 1, 1024) for name in ("encoder_attention_heads", "decoder_attention_heads")}
    for name, count in heads.items():
        if width % count:
            raise text.refuse(name, f"a divisor of d_model {width}")
    settings = {
        "vocab_size": vocab_size + 1 if is_original else vocab_size,
        "d_model": width,
        "encoder_layers": text.whole("encoder_layers", 1, 128),
        "decoder_layers": text.whole("decoder_layers", 1, 128),
        "encoder_ffn_dim": text.whole("encoder_ffn_dim", 1, 1_048_576),
        "decoder_ffn_dim": text.whole("decoder_ffn_dim", 1, 1_048_576),
        "max_position_embeddings": text.whole("max_position_embeddings", 8, 1_048_576, 1024),
        "activation_function": activation,
        "scale_embedding": text.truth("scale_embedding", False),
        "pad_token_id": text.whole("pad_token_id", 0, vocab_size - 1, min(1, vocab_size - 1)),
    }
    return settings | heads, vocab_size


def _check_widths(path: Path, vision: dict[str, Any], text: dict[str, Any]) -> None:
    if vision["projection_dim"] != text["d_model"]:
        raise CheckpointError(
            f"{path}: vision_config.projection_dim {vision['projection_dim']} and text_config.d_model "
            f"{text['d_model']} differ, but image features stand beside words"
        )


def _image_side(directory: Path, vision: dict[str, Any], max_positions: int) -> int:
    """Read the side of the square that pictures are resized to; 768 pixels where no file says."""
    own, processor = directory / "preprocessor_config.json", directory / "processor_config.json"
    if own.exists() or not processor.exists():
        fields = Fields(own, read_json_if_there(own))
    else:  # What transformers 5 saves: everything of the processor in one file.
        fields = Fields(processor, read_json(processor)).within("image_processor")
    for name, wanted in (("image_mean", _MEAN), ("image_std", _STD)):
        if not _are_close(fields.get(name, wanted), wanted):
            raise fields.refuse(name, f"{wanted}: every Florence-2 is normalised so")
    size = fields.get("size", _IMAGE_SIDE_PX)
    if isinstance(size, dict):
        height, width = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
        size = width if height == width else None
    stride = prod(vision["patch_stride"])
    high = stride * vision["max_position_embeddings"]
    if not isinstance(size, int) or isinstance(size, bool) or not stride <= size <= high or size % stride:
        raise fields.refuse("size", f"one square side in pixels, a multiple of {stride} up to {high}")
    if (size // stride) ** 2 + 1 > max_positions - 3:
        raise fields.refuse("size", f"so small that its image tokens and a prompt fit into {max_positions} positions")
    return size


def _are_close(values: object, wanted: list[float]) -> bool:
    if not isinstance(values, list) or len(values) != len(wanted):
        return False
    return all(isinstance(a, int | float) and abs(a - b) < 1e-3 for a, b in zip(values, wanted, strict=True))
