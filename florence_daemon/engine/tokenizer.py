"""The tokenizer of a checkpoint: BART's byte-level BPE and Florence-2's added tokens, from whatever files are there.

Checkpoints come with tokenizer.json complete, with a plain BART tokenizer.json that lacks the added tokens, with
vocab.json and merges.txt, with or without added_tokens.json, and with tokens their author added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from florence_daemon.engine.files import read_json, read_json_if_there, read_text
from florence_daemon.errors import CheckpointError

BINS = 1000
ADDED_TOKENS: tuple[str, ...] = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{bin_}>" for bin_ in range(BINS)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>"),
    *("<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>"),
    *("<proposal>", "</proposal>", "<poly>", "</poly>", "<and>"),
)
_FRAME = ("<s>", "</s>", "<pad>")


@dataclass(frozen=True)
class _Words:
    """Where a vocabulary was read from, its byte-pair entries, its merges, and the tokens beside them."""

    path: Path
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int]


class Tokenizer:
    """Words to ids and back. special_ids: the ids of `<s>`, `</s>` and `<pad>`. size: one more than the largest id."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], added: dict[str, int]) -> None:
        from tokenizers import AddedToken, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as ByteLevelBpe

        # Added tokens go into the model's vocabulary too: the library then takes their ids from there, where it
        # would else count on from the end and could not leave a gap. No merge ever makes one.
        self._bpe = ByteLevelBpe(models.BPE(vocab={**vocab, **added}, merges=merges))
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._bpe.decoder = decoders.ByteLevel()
        self._bpe.add_special_tokens([AddedToken(token, normalized=False) for token in added])
        self._added = {id_: token for token, id_ in added.items()}
        self.special_ids = {token: added[token] for token in _FRAME}
        self.size = max(max(vocab.values()), max(added.values())) + 1

    def encode(self, text: str) -> list[int]:
        """Encode `<s> text </s>`: "What does the image describe?" is 0 2264 473 5 2274 6190 116 2."""
        ids = self._bpe.encode(text, add_special_tokens=False).ids
        return [self.special_ids["<s>"], *ids, self.special_ids["</s>"]]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids, location tokens included; `<s>`, `</s>` and `<pad>` are left out."""
        return "".join(self._pieces(ids))

    def _pieces(self, ids: Iterable[int]) -> Iterator[str]:
        # An added token is written as it is, since its letters are no bytes of the byte-level alphabet.
        for is_added, run in groupby(ids, key=self._added.__contains__):
            if is_added:
                yield from (self._added[id_] for id_ in run if self._added[id_] not in _FRAME)
            else:
                yield self._bpe.decode(list(run), skip_special_tokens=False)


def read_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Build the tokenizer from a checkpoint's files. vocab_size: rows of its embedding.

    A token that no file names gets the next free id behind the vocabulary, as the original's processor does.

    Raises:
        CheckpointError: files are missing or contradict each other or the embedding; the file is named.
    """
    words = _read_words(directory, vocab_size)
    added = _complete(_read_added(directory, words, vocab_size), words, vocab_size)
    _check_ids(words, added)
    try:
        return Tokenizer(words.vocab, words.merges, added)
    except Exception as error:  # The library reports merges that do not fit as bare Exception.
        raise CheckpointError(f"{words.path} is not a byte-level BPE vocabulary: {error}") from error


def _read_words(directory: Path, rows: int) -> _Words:
    whole, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        return _read_whole(whole, rows)
    if not vocab.is_file() or not merges.is_file():
        raise CheckpointError(f"{directory} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt")
    lines = [line.rstrip("\r") for line in read_text(merges).split("\n")]
    pairs = _pairs(merges, [line for line in lines if line and not line.startswith("#version")])
    return _Words(vocab, _ids(vocab, read_json(vocab), rows), pairs, {})


def _read_whole(path: Path, rows: int) -> _Words:
    """Take vocabulary, merges and added tokens out of a tokenizer.json, and leave the rest: it is always BART's."""
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path} is not a byte-level BPE: its model is not of type BPE")
    listed = content.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise CheckpointError(f"{path}: added_tokens is not a list of objects")
    added = _ids(path, {str(token.get("content")): token.get("id") for token in listed}, rows)
    return _Words(path, _ids(path, model.get("vocab"), rows), _pairs(path, model.get("merges")), added)


def _read_added(directory: Path, words: _Words, rows: int) -> dict[str, int]:
    """Gather the added tokens of all files that can name them; they must agree."""
    sources = [(words.path, words.added)]
    path = directory / "added_tokens.json"
    sources.append((path, _ids(path, read_json_if_there(path), rows)))
    path = directory / "tokenizer_config.json"
    decoder = read_json_if_there(path).get("added_tokens_decoder") or {}
    sources.append((path, _ids(path, _turned_round(path, decoder), rows)))
    added: dict[str, int] = {}
    for path, tokens in sources:
        for token, id_ in tokens.items():
            known = added.setdefault(token, words.vocab.get(token, id_))
            if known != id_:
                raise CheckpointError(f"{path} gives {token!r} the id {id_}, but another file there the id {known}")
    return added


def _complete(added: dict[str, int], words: _Words, vocab_size: int) -> dict[str, int]:
    """Add what no file names: the frame from the vocabulary, and the 1024, in order, on the ids after it."""
    complete = dict(added)
    for token in _FRAME:
        if token not in complete and token not in words.vocab:
            raise CheckpointError(f"{words.path} has no token {token}, so it is not a Florence-2 vocabulary")
        complete.setdefault(token, words.vocab.get(token, -1))
    taken = set(complete.values()) | set(words.vocab.values())
    free = (id_ for id_ in range(max(words.vocab.values()) + 1, vocab_size) if id_ not in taken)
    for token in ADDED_TOKENS:
        if token not in complete:
            complete[token] = words.vocab.get(token, -1)
        if complete[token] < 0:
            complete[token] = next(free, vocab_size)
    if any(id_ >= vocab_size for id_ in complete.values()):
        raise CheckpointError(
            f"{words.path}: its {len(words.vocab)} entries and Florence-2's added tokens need more than the "
            f"{vocab_size} rows that the embedding has"
        )
    return complete


def _check_ids(words: _Words, added: dict[str, int]) -> None:
    everything = {**words.vocab, **added}
    if len(set(everything.values())) != len(everything):
        raise CheckpointError(f"{words.path}: two tokens have the same id")
    first = added["<loc_0>"]
    astray = next((bin_ for bin_ in range(BINS) if added[f"<loc_{bin_}>"] != first + bin_), None)
    if astray is not None:
        token = f"<loc_{astray}>"
        raise CheckpointError(f"{words.path}: {token} has the id {added[token]} where {first + astray} should follow")


def _ids(path: Path, tokens: Any, rows: int) -> dict[str, int]:
    """Check a table of tokens and ids against the rows of the embedding.

    `<image>` just behind the rows is left out: native processors add it, and original embeddings have no row for it.
    """
    if not isinstance(tokens, dict):
        raise CheckpointError(f"{path} has no vocabulary of tokens and ids")
    kept = {token: id_ for token, id_ in tokens.items() if (token, id_) != ("<image>", rows)}
    for token, id_ in kept.items():
        if not isinstance(token, str) or not token or not isinstance(id_, int) or isinstance(id_, bool) or id_ < 0:
            raise CheckpointError(f"{path}: the token {token!r} has the id {id_!r}, which is not a whole number")
        if id_ >= rows:
            raise CheckpointError(f"{path}: the token {token!r} has the id {id_}, but the embedding has {rows} rows")
    return kept


def _pairs(path: Path, merges: Any) -> list[tuple[str, str]]:
    """Read merges as they are written in merges.txt and old files, "a b", or in new ones, ["a", "b"]."""
    if not isinstance(merges, list):
        raise CheckpointError(f"{path} has no list of merges")
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(f"{path}: {merge!r} is not a merge of two parts")
        pairs.append((parts[0], parts[1]))
    return pairs


def _turned_round(path: Path, decoder: Any) -> dict[str, int]:
    """Turn tokenizer_config.json's id → token round."""
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder is not an object")
    tokens = {}
    for id_, token in decoder.items():
        if not id_.isdecimal() or len(id_) > 9 or not isinstance(token, dict):
            raise CheckpointError(f"{path}: added_tokens_decoder has the entry {id_!r}, which is not an id and a token")
        tokens[str(token.get("content"))] = int(id_)
    return tokens
