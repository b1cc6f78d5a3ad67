"""Checkpoints: both layouts, every form of weights and tokenizer, and what is said about those that do not load."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from florence_daemon.engine.backend import open_backend
from florence_daemon.engine.checkpoint import find, open_checkpoint, verify
from florence_daemon.engine.layout import read_layout
from florence_daemon.engine.names import native_name, original_name
from florence_daemon.engine.preprocess import read_picture
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.shapes import expected_shapes
from florence_daemon.engine.tokenizer import ADDED_TOKENS
from florence_daemon.engine.transformers_backend import TransformersBackend, empty_network
from florence_daemon.errors import CheckpointError
from tests.engine.checkpoints import Tensors, change_json, change_tensors, copy_tiny, tiny_tensors, write_shards
from tests.reference import IMAGES, TINY_A, needs_reference

pytestmark = needs_reference

FAST_PX = 96
ASKS = (Ask("<CAPTION>", max_new_tokens=8), Ask("<GENERATE_TAGS>", num_beams=1, max_new_tokens=8))
PROMPT_IDS = {
    "What does the image describe?": [0, 2264, 473, 5, 2274, 6190, 116, 2],
    "<GENERATE_TAGS>": [0, 41552, 30965, 2076, 8625, 1215, 46985, 104, 15698, 2],
}


def answers(directory: Path) -> list[object]:
    backend = open_backend(EngineSettings(str(directory), engine="torch"))
    return [answer.result for answer in backend.answer(read_picture(str(IMAGES / "shapes.png")), ASKS)[0]]


def complaint(directory: Path) -> str:
    """What both ways of looking at a checkpoint say about it."""
    with pytest.raises(CheckpointError) as verified:
        verify(directory)
    with pytest.raises(CheckpointError) as loaded:
        open_backend(EngineSettings(str(directory), engine="torch"))
    assert str(verified.value) == str(loaded.value)
    return str(verified.value)


@pytest.fixture(scope="module")
def expected_answers(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return answers(copy_tiny(tmp_path_factory.mktemp("fast"), side_px=FAST_PX))


# Weights.


@pytest.mark.parametrize("form", ["bin", "old bin", "safetensors shards", "bin shards", "float32", "bfloat16"])
def test_every_form_of_weights_loads(form: str, tmp_path: Path, expected_answers: list[object]) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",), side_px=FAST_PX)
    tensors = tiny_tensors()
    if form in ("bin", "old bin"):
        torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
    elif form.endswith("shards"):
        write_shards(directory, tensors, form.split()[0])
    else:
        dtype = getattr(torch, form)
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, directory / "model.safetensors")

    verify(directory)

    if form != "bfloat16":  # which rounds the weights, so that other words come out
        assert answers(directory) == expected_answers
    else:
        assert len(answers(directory)) == len(ASKS)


def test_repeated_embeddings_load_as_if_they_were_not(tmp_path: Path, expected_answers: list[object]) -> None:
    directory = copy_tiny(tmp_path, side_px=FAST_PX)

    def repeat(tensors: Tensors) -> None:
        for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
            tensors[f"language_model.{name}.weight"] = tensors["language_model.model.shared.weight"].clone()

    change_tensors(directory, repeat)

    assert answers(directory) == expected_answers


def test_the_embedding_can_come_under_any_of_its_names(tmp_path: Path, expected_answers: list[object]) -> None:
    directory = copy_tiny(tmp_path, side_px=FAST_PX)

    def rename(tensors: Tensors) -> None:
        tensors["language_model.lm_head.weight"] = tensors.pop("language_model.model.shared.weight")
        del tensors["visual_temporal_embed.pos_idx_to_embed"], tensors["language_model.final_logits_bias"]

    change_tensors(directory, rename)

    assert answers(directory) == expected_answers


def test_the_native_layout_gives_the_same_answers(tmp_path: Path, expected_answers: list[object]) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors", "config.json"), side_px=FAST_PX)
    backend = open_backend(EngineSettings(str(TINY_A), engine="transformers"))
    assert isinstance(backend, TransformersBackend)
    backend.model.save_pretrained(directory)
    assert "embed_dim" in json.loads((directory / "config.json").read_text())["vision_config"]

    verify(directory)

    assert answers(directory) == expected_answers


def test_missing_unknown_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)

    def spoil(tensors: Tensors) -> None:
        del tensors["vision_tower.convs.2.proj.weight"]
        del tensors["vision_tower.blocks.2.1.channel_block.ffn.fn.net.fc1.bias"]
        tensors["vision_tower.extra.weight"] = torch.zeros(1)
        tensors["image_projection"] = tensors["image_projection"].T
        tensors["image_proj_norm.bias"] = torch.zeros(64, dtype=torch.int64)

    change_tensors(directory, spoil)

    message = complaint(directory)

    assert (
        "Missing (2): vision_tower.convs.2.proj.weight, vision_tower.blocks.2.1.channel_block.ffn.fn.net.fc1.bias."
        in message
    )
    assert "Unknown (1): vision_tower.extra.weight." in message
    assert "Misshapen (1): image_projection is 64×256 where 256×64 is expected." in message
    assert "Not of floats (1): image_proj_norm.bias is I64." in message
    assert str(directory) in message


def test_of_many_missing_tensors_ten_are_named_and_all_counted(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    save_file({"x": torch.zeros(1)}, directory / "model.safetensors")

    message = complaint(directory)

    assert "Missing (272): " in message
    assert ", and 262 more." in message
    assert len(message) < 2000


def test_a_missing_embedding_is_named(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    change_tensors(directory, lambda tensors: tensors.pop("language_model.model.shared.weight"))

    assert "Missing (1): language_model.model.shared.weight." in complaint(directory)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",))
    write_shards(directory, tiny_tensors(), "safetensors")
    first = directory / "model-00001-of-00002.safetensors"
    shutil.copyfile(first, directory / "model-00002-of-00002.safetensors")

    assert "Twice there (137): image_pos_embed.column_embeddings.weight in model-00001-of" in complaint(directory)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_half_downloaded_file_is_named(share: float, tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    os.truncate(directory / "model.safetensors", int((directory / "model.safetensors").stat().st_size * share))

    assert f"{directory / 'model.safetensors'} is not a whole safetensors file" in complaint(directory)


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")

    assert "only a Git LFS pointer: run `git lfs pull`" in complaint(directory)


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["HARM"],)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    directory = copy_tiny(tmp_path / "model", without=("model.safetensors",))
    if wrapped:
        torch.save({"x": _Harm()}, directory / "pytorch_model.bin")
    else:
        (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Harm()}))

    assert "pytorch_model.bin is not a whole file of weights and nothing but weights" in complaint(directory)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [[1], {"x": 3}, {"x": {"y": torch.zeros(1)}}, {"x": torch.zeros(2, 2).to_sparse()}])
@pytest.mark.filterwarnings("ignore")  # torch warns of sparse tensors
def test_a_pickle_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",))
    torch.save(content, directory / "pytorch_model.bin")

    assert "pytorch_model.bin" in complaint(directory)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", "..", "", 7]
)
def test_an_index_cannot_point_elsewhere(name: object, tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path / "model", without=("model.safetensors",))
    shutil.copyfile(TINY_A / "model.safetensors", tmp_path / "model.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))

    assert "which is not a *.safetensors file beside it" in complaint(directory)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",))
    write_shards(directory, tiny_tensors(), "safetensors")
    (directory / "model-00002-of-00002.safetensors").unlink()

    assert "model-00002-of-00002.safetensors cannot be read: No such file" in complaint(directory)


def test_a_directory_without_weights_says_which_were_looked_for(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",))

    assert "holds no weights: none of model.safetensors, model.safetensors.index.json, pyt" in complaint(directory)


# Names and shapes.


def test_every_name_goes_to_native_and_back() -> None:
    for name in tiny_tensors():
        native = native_name(name)
        assert native is None or original_name(native) == name


def test_the_expected_shapes_are_those_of_transformers_network() -> None:
    layout = read_layout(TINY_A)
    network = {name: tuple(tensor.shape) for name, tensor in empty_network(layout).state_dict().items()}

    expected = expected_shapes(layout)

    assert {name for name in network if name not in expected} == {
        "model.language_model.encoder.embed_tokens.weight",
        "model.language_model.decoder.embed_tokens.weight",
        "lm_head.weight",
    }
    rows, width = expected.pop("model.language_model.shared.weight")
    assert network["model.language_model.shared.weight"] == (rows + 1, width)
    assert all(network[name] == shape for name, shape in expected.items())


# Configuration.


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["vision_config"].update(image_feature_source=["last_frame"]), "image_feature_source"),
        (lambda c: c["vision_config"]["image_pos_embed"].update(type="SINE"), "image_pos_embed.type"),
        (lambda c: c["vision_config"]["visual_temporal_embedding"].update(type="learned"), "temporal_embedding.type"),
        (lambda c: c["vision_config"].update(dim_embed="wide"), "vision_config.dim_embed"),
        (lambda c: c["vision_config"].update(depths=[1, 1]), "vision_config.depths"),
        (lambda c: c["vision_config"].update(depths=[1, 1, 10**9, 1]), "vision_config.depths"),
        (lambda c: c["vision_config"].update(num_heads=[1, 2, 3, 8]), "num_heads"),
        (lambda c: c["vision_config"].update(projection_dim=65), "projection_dim"),
        (lambda c: c["text_config"].update(encoder_layers=-1), "text_config.encoder_layers"),
        (lambda c: c["text_config"].update(d_model=True), "text_config.d_model"),
        (lambda c: c["text_config"].update(activation_function="os.system"), "text_config.activation_function"),
        (lambda c: c["text_config"].update(decoder_attention_heads=5), "text_config.decoder_attention_heads"),
        (lambda c: c["text_config"].update(vocab_size=0), "text_config.vocab_size"),
        (lambda c: c.update(tie_word_embeddings=False), "tie_word_embeddings"),
        (lambda c: c.update(vision_config=[]), "vision_config"),
        (lambda c: c.update(vision_config={}, model_type="llava"), "not a Florence-2.*llava"),
    ],
)
def test_a_configuration_of_another_network_is_refused_by_name(
    change: Callable[[Any], object], named: str, tmp_path: Path
) -> None:
    directory = copy_tiny(tmp_path)
    change_json(directory / "config.json", change)

    with pytest.raises(CheckpointError, match=f"config.json.*{named}"):
        read_layout(directory)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "null", "[" * 100_000])
def test_a_configuration_that_is_no_object_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")

    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [0, 100, 7680, {"height": 768, "width": 384}, "big", True])
def test_a_picture_size_that_does_not_fit_is_refused(size: object, tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    change_json(directory / "preprocessor_config.json", lambda content: content.update(size=size))

    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: size is"):
        read_layout(directory)


def test_another_normalisation_is_refused(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    change_json(directory / "preprocessor_config.json", lambda content: content.update(image_mean=[0.5, 0.5, 0.5]))

    with pytest.raises(CheckpointError, match="image_mean"):
        read_layout(directory)


def test_without_a_preprocessor_config_pictures_are_768_pixels(tmp_path: Path) -> None:
    layout = read_layout(copy_tiny(tmp_path, without=("preprocessor_config.json",)))

    assert (layout.image_side_px, layout.image_tokens) == (768, 577)


def test_the_size_can_come_from_a_processor_config(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("preprocessor_config.json",))
    size = {"height": FAST_PX, "width": FAST_PX}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": {"size": size}}))

    assert read_layout(directory).image_tokens == 10


def test_search_defaults_come_from_the_files_in_order(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    (directory / "generation_config.json").write_text('{"no_repeat_ngram_size": 5, "num_beams": null}')
    change_json(directory / "config.json", lambda c: c["text_config"].update(num_beams=4, no_repeat_ngram_size=7))
    change_json(directory / "config.json", lambda c: c["text_config"].pop("early_stopping"))

    search = open_checkpoint(directory).search

    assert (search.no_repeat_ngram_size, search.num_beams, search.early_stopping) == (5, 4, True)


def test_without_a_generation_config_the_defaults_are_florences(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("generation_config.json",))
    kept = ("eos_token_id", "vocab_size", "max_position_embeddings")

    def strip(content: Any) -> None:
        text = content["text_config"]
        for name in [name for name in text if name.endswith("token_id") or name in ("num_beams", "early_stopping")]:
            if name not in kept:
                del text[name]

    change_json(directory / "config.json", strip)

    assert open_checkpoint(directory).search == open_checkpoint(TINY_A).search


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 0),
        ("num_beams", 10**9),
        ("no_repeat_ngram_size", -1),
        ("length_penalty", float("nan")),
        ("length_penalty", "1"),
        ("early_stopping", "often"),
        ("forced_bos_token_id", 51289),
        ("eos_token_id", -1),
    ],
)
def test_search_settings_out_of_range_are_refused_by_name(name: str, value: object, tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    change_json(directory / "generation_config.json", lambda content: content.update({name: value}))

    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {name} is"):
        open_checkpoint(directory)


# Tokenizer.


def _plain_bart(directory: Path) -> None:
    """As in Microsoft's repositories: a plain tokenizer.json, vocab.json, and 1024 tokens that no file names."""
    for name in ("merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (directory / name).unlink()
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    change_json(directory / "tokenizer.json", lambda c: c.update(added_tokens=c["added_tokens"][:5]))


def _vocab_and_merges(directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).unlink()


def _vocab_and_merges_alone(directory: Path) -> None:
    _vocab_and_merges(directory)
    (directory / "added_tokens.json").unlink()


def _whole_alone(directory: Path) -> None:
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).unlink()


def _plain_with_config(directory: Path) -> None:
    _whole_alone(directory)
    shutil.copyfile(TINY_A / "tokenizer_config.json", directory / "tokenizer_config.json")
    change_json(directory / "tokenizer.json", lambda c: c.update(added_tokens=[]))


def _merges_as_lines(directory: Path) -> None:
    _whole_alone(directory)
    change_json(
        directory / "tokenizer.json", lambda c: c["model"].update(merges=[" ".join(m) for m in c["model"]["merges"]])
    )


@pytest.mark.parametrize(
    "change",
    [_plain_bart, _vocab_and_merges, _vocab_and_merges_alone, _whole_alone, _plain_with_config, _merges_as_lines],
)
def test_every_combination_of_tokenizer_files_gives_the_same_ids(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",))
    change(directory)

    tokenizer = open_checkpoint(directory).tokenizer

    for text, ids in PROMPT_IDS.items():
        assert tokenizer.encode(text) == ids
    assert tokenizer.encode("a <loc_0><loc_999></poly><and>")[2:-1] == [1437, 50269, 51268, 51287, 51288]
    assert tokenizer.decode([2, 0, 102, 50269, 51288, 2, 1, 1]) == "a<loc_0><and>"


def test_the_added_tokens_are_in_the_originals_order() -> None:
    added = json.loads((TINY_A / "added_tokens.json").read_text())

    assert {token: 50265 + at for at, token in enumerate(ADDED_TOKENS)} == added


def test_a_fine_tunes_own_tokens_are_kept(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, side_px=FAST_PX)
    change_json(directory / "added_tokens.json", lambda content: content.update({"<café au lait>": 51289}))
    change_json(directory / "config.json", lambda content: content["text_config"].update(vocab_size=51296))

    def grow(tensors: Tensors) -> None:
        rows = tensors["language_model.model.shared.weight"]
        tensors["language_model.model.shared.weight"] = torch.cat([rows, rows[:7]])
        del tensors["language_model.final_logits_bias"]

    change_tensors(directory, grow)

    tokenizer = open_checkpoint(directory).tokenizer

    assert tokenizer.encode("a<café au lait>b") == [0, 102, 51289, 428, 2]
    assert tokenizer.decode([102, 51289, 428]) == "a<café au lait>b"
    assert len(answers(directory)) == len(ASKS)


def test_an_image_token_behind_the_embedding_is_left_out(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path)
    change_json(directory / "added_tokens.json", lambda content: content.update({"<image>": 51289}))

    assert open_checkpoint(directory).tokenizer.size == 51289


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("added_tokens.json", lambda c: c.update({"<mine>": 51289}), r"'<mine>' has the id 51289.* 51289 rows"),
        ("added_tokens.json", lambda c: c.update({"<loc_5>": 50273}), r"'<loc_5>' the id 50273"),
        ("added_tokens.json", lambda c: c.update({"<od>": "x"}), r"'<od>' has the id 'x'"),
        ("added_tokens.json", lambda c: c.update({"<mine>": -1}), r"'<mine>' has the id -1"),
        (
            "tokenizer_config.json",
            lambda c: c.update(added_tokens_decoder=[1]),
            "added_tokens_decoder is not an object",
        ),
        ("tokenizer_config.json", lambda c: c["added_tokens_decoder"].update({"-5": {}}), "the entry '-5'"),
        ("tokenizer.json", lambda c: c.update(model=None), "not a byte-level BPE"),
        ("tokenizer.json", lambda c: c["model"].update(type="WordPiece"), "not a byte-level BPE"),
        ("tokenizer.json", lambda c: c["model"].update(merges=["a b c"]), "'a b c' is not a merge of two parts"),
        ("tokenizer.json", lambda c: c["model"].update(merges=["zzzz yyyy"]), "not a byte-level BPE vocabulary"),
        ("tokenizer.json", lambda c: c["model"].update(merges=7), "no list of merges"),
        ("tokenizer.json", lambda c: c["model"].update(vocab=[]), "no vocabulary of tokens and ids"),
        ("tokenizer.json", lambda c: c.update(added_tokens=[3]), "added_tokens is not a list of objects"),
    ],
)
def test_a_tokenizer_that_contradicts_is_named(
    file: str, change: Callable[[Any], object], said: str, tmp_path: Path
) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",))
    change_json(directory / file, change)

    with pytest.raises(CheckpointError, match=f"{file}.*{said}"):
        open_checkpoint(directory)


def test_location_tokens_out_of_order_are_named(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors", "tokenizer.json", "tokenizer_config.json"))
    swap = {"<loc_7>": 50277, "<loc_8>": 50276}
    change_json(directory / "added_tokens.json", lambda content: content.update(swap))

    with pytest.raises(CheckpointError, match="<loc_7> has the id 50277 where 50276 should follow"):
        open_checkpoint(directory)


def test_a_vocabulary_too_large_for_the_embedding_is_named(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",))
    _plain_bart(directory)
    change_json(directory / "config.json", lambda content: content["text_config"].update(vocab_size=50300))

    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its 50265 entries .* more than the 50300 rows"):
        open_checkpoint(directory)


def test_a_directory_without_a_tokenizer_says_what_it_needs(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("tokenizer.json", "merges.txt", "model.safetensors"))

    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"):
        open_checkpoint(directory)


def test_a_small_vocabulary_with_other_ids_loads(tmp_path: Path) -> None:
    """As the demo model has it: 300 words, so that `<loc_0>` is 304 and `<image>` is 1324."""
    names = ("tokenizer.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
    directory = copy_tiny(tmp_path, without=names, side_px=FAST_PX)
    vocab = json.loads((TINY_A / "vocab.json").read_text())
    bytes_alone = sorted((token for token in vocab if len(token) == 1), key=vocab.__getitem__)
    words = ["<s>", "<pad>", "</s>", "<unk>", *bytes_alone]
    small = {token: id_ for id_, token in enumerate(words + [f"{a}{b}" for a, b in zip("ti", "hn", strict=True)])}
    (directory / "vocab.json").write_text(json.dumps(small))
    (directory / "merges.txt").write_text("#version: 0.2\nt h\ni n\n")
    rows = len(small) + len(ADDED_TOKENS)
    change_json(directory / "config.json", lambda content: content["text_config"].update(vocab_size=rows))

    def shrink(tensors: Tensors) -> None:
        tensors["language_model.model.shared.weight"] = tensors["language_model.model.shared.weight"][:rows]

    change_tensors(directory, shrink)

    checkpoint = open_checkpoint(directory)

    assert checkpoint.layout.image_token_id == rows
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("thin <loc_5> ice")) == "thin <loc_5> ice"
    assert len(answers(directory)) == len(ASKS)


# Finding.


def test_the_demo_model_is_found_and_whole() -> None:
    verify(find("demo"))


def test_a_directory_is_found_as_it_is(tmp_path: Path) -> None:
    assert find(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "model", ["", "nothing", "/no/such/directory", "./a/b", "a/b/c", "../up", "owner/na me", "~/x/y", "-a/b"]
)
def test_what_is_no_model_says_what_one_is(model: str) -> None:
    with pytest.raises(CheckpointError, match="a model is `demo`, a directory that is there, or a Hub id such as"):
        find(model)


def test_a_directory_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    assert "has no config.json" in complaint(tmp_path)
