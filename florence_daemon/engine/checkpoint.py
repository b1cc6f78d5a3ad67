"""Find a checkpoint, download it, and say whether it is whole: `demo`, a local directory, or a Hub id.

Nothing heavy is imported for the first two; huggingface_hub is, once a Hub id is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_daemon.engine.files import PICKLED, SAFETENSORS, find_weights
from florence_daemon.engine.layout import Layout, SearchDefaults, read_layout, read_search_defaults
from florence_daemon.engine.protocol import Ask
from florence_daemon.engine.tokenizer import Tokenizer, read_tokenizer
from florence_daemon.engine.weights import check_weights, read_weights
from florence_daemon.errors import CheckpointError, PromptError
from florence_daemon.tasks import TASKS, Task, fed_text, find_task

if TYPE_CHECKING:
    import torch

DEMO = "demo"
DEMO_DIRECTORY = Path(__file__).parent.parent / "demo_model"

_DOZEN_WORDS = "a woman with a red umbrella walks her dog along the river"

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_FORMS = "a model is `demo`, a directory that is there, or a Hub id such as MiaoshouAI/Florence-2-large-PromptGen-v2.0"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: everything but its weights, which `read_weights` brings."""

    directory: Path
    layout: Layout
    tokenizer: Tokenizer
    search: SearchDefaults

    def read_weights(
        self, dtype: torch.dtype, device: str, joined: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, torch.Tensor]:
        """Read the weights under native names; see `weights.read_weights`.

        Raises:
            CheckpointError: a tensor is unknown, missing or misshapen, or a file is broken.
        """
        return read_weights(self.directory, self.layout, dtype, device, joined)

    def encode_prompt(self, ask: Ask) -> tuple[Task, list[int]]:
        """Write out what an ask feeds to the model, as token ids.

        Raises:
            PromptError: it is no task, lacks its text, or its text is longer than the model can read.
        """
        task, text = find_task(ask.prompt, ask.text)
        ids = self.tokenizer.encode(fed_text(task, text))
        room = self.layout.max_positions - self.layout.image_tokens
        if len(ids) > room:
            raise PromptError(f"The text for {task.token} is too long: {len(ids)} tokens, and the model reads {room}")
        return task, ids


def find(model: str, revision: str | None = None, offline: bool = False) -> Path:
    """Find the directory of a checkpoint; a Hub id that is not in the cache is downloaded first.

    What the cache holds whole is taken without a question to the Hub, so that starting needs no network; `download`
    brings what is newer.

    Raises:
        CheckpointError: it is not there; the message says what was looked for, where, and how to put it there.
    """
    if model == DEMO:
        return _demo()
    local = Path(model).expanduser()
    if model and local.is_dir():
        return local
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"There is no directory {model!r}; {_FORMS}")
    cached = _cached(model, revision)
    if cached is not None:
        return cached
    if offline or _hub().constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{_sought(model, revision)}; offline, nothing is downloaded. {_how_to(model)}")
    return download(model, revision)


def download(model: str, revision: str | None = None) -> Path:
    """Download a checkpoint from the Hub into its cache, what is missing of it, and show the progress.

    Only configuration, tokenizer and weights come: no code, and pickled weights only where there are no safetensors.
    `demo` and directories need no download and are found as they are.

    Raises:
        CheckpointError: the Hub cannot be reached, has no such model or revision, or the disk is full.
    """
    if not _HUB_ID.fullmatch(model) or Path(model).is_dir():
        return find(model, revision)
    hub = _hub()
    try:
        listed = hub.HfApi().model_info(model, revision=revision).siblings or []
        wanted = _wanted([file.rfilename for file in listed])
        directory = Path(hub.snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:  # The Hub's library lets its own errors, httpx's and the system's through.
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(
            f"{_sought(model, revision)}, and downloading it failed: {type(error).__name__}: {reason}. {_how_to(model)}"
        ) from error
    if not _is_whole(directory):
        files = ", ".join(sorted(wanted)) or "nothing of it"
        raise CheckpointError(f"{model} on the Hub has not all files of a Florence-2, but {files}")
    return directory


def open_checkpoint(directory: Path, image_size: int | None = None) -> Checkpoint:
    """Read a checkpoint's configuration, tokenizer and search defaults.

    image_size: the side in pixels that pictures are resized to; None takes the checkpoint's own.

    Raises:
        CheckpointError: a file is missing, broken, or of another kind of model, and file and field are named; or the
            network cannot read pictures of that size.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is no checkpoint: it has no config.json")
    layout = read_layout(directory)
    tokenizer = read_tokenizer(directory, layout.vocab_size)
    if image_size not in (None, layout.image_side_px):
        layout = layout.with_side(image_size, longest_prompt(tokenizer))
    search = read_search_defaults(directory, layout, tokenizer.special_ids)
    return Checkpoint(directory, layout, tokenizer, search)


def longest_prompt(tokenizer: Tokenizer) -> int:
    """Count the tokens of the longest prompt there is, a region or a dozen words put in where a task wants them."""
    texts = {"nothing": None, "region": "<loc_999>" * 4}
    return max(len(tokenizer.encode(fed_text(task, texts.get(task.needs, _DOZEN_WORDS)))) for task in TASKS)


def verify(directory: Path) -> None:
    """Check a whole checkpoint without loading it: its configuration, its tokenizer, each tensor's name and shape.

    Raises:
        CheckpointError: something is missing or wrong; the file, field or tensors are named.
    """
    check_weights(directory, open_checkpoint(directory).layout)


def _demo() -> Path:
    if not (DEMO_DIRECTORY / "config.json").is_file():
        raise CheckpointError(f"The demo model is not in {DEMO_DIRECTORY}: the installation is incomplete, repeat it")
    return DEMO_DIRECTORY


def _hub() -> Any:
    # Read when the library is imported. A person who wants to be counted can set it to 0.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    return huggingface_hub


def _cached(model: str, revision: str | None) -> Path | None:
    """Find a whole checkpoint in the Hub's cache; an interrupted download is not one."""
    # snapshot_download would want every file of the repository here, also those that were left out on purpose.
    config = _hub().try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    directory = Path(config).parent
    return directory if _is_whole(directory) else None


def _is_whole(directory: Path) -> bool:
    if not (directory / "config.json").is_file():
        return False
    if not (directory / "tokenizer.json").is_file() and not (directory / "merges.txt").is_file():
        return False
    try:
        find_weights(directory)
    except CheckpointError:
        return False
    return True


def _wanted(listed: list[str]) -> list[str]:
    """Choose the files to download: those at the top that are read, each by its whole name."""
    names = [name for name in listed if _PLAIN_NAME.fullmatch(name)]
    texts = [name for name in names if name.endswith((".json", ".txt")) and not name.endswith(".index.json")]
    for stem, ending in ((SAFETENSORS, ".safetensors"), (PICKLED, ".bin")):
        if stem in names:
            return [*texts, stem]
        if f"{stem}.index.json" in names:
            shards = [name for name in names if name.startswith(stem.removesuffix(ending)) and name.endswith(ending)]
            return [*texts, f"{stem}.index.json", *shards]
    return texts


def _sought(model: str, revision: str | None) -> str:
    constants = _hub().constants
    at = f" at revision {revision}" if revision else ""
    return f"The model {model}{at} was looked for in {constants.HF_HUB_CACHE} and at {constants.ENDPOINT}"


def _how_to(model: str) -> str:
    return (
        f"To put it there, run `florence-daemon pull --model {model}` with network access, "
        "or copy its files into a directory and give that directory as the model"
    )
