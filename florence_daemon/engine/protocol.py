"""What crosses the pipe between the daemon and the engine process: frozen, picklable, free of heavy libraries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from florence_daemon import errors


@dataclass(frozen=True)
class Ask:
    """One question about a picture.

    prompt: the task token as `tasks.TASKS` spells it, `<CAPTION>`.
    text: what the task needs besides (a phrase, a region), else None.
    num_beams, max_new_tokens: None takes the engine's setting. no_repeat_ngram_size: so many tokens in a row come once
    at most; 0 lets them come as often as they will, None takes the checkpoint's setting.
    temperature: 0 takes the likeliest tokens, above it they are drawn, with one beam. top_p: from the fewest that have
    this probability together. seed: the same draws the same; None, others each time.
    """

    prompt: str
    text: str | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    no_repeat_ngram_size: int | None = None


@dataclass(frozen=True)
class Resized:
    """A picture that was made as large as the model sees it before it was sent here.

    content: the file of a square, without loss. size_px: the upright whole picture's (width, height), for places in it.
    """

    content: bytes
    size_px: tuple[int, int]


Source = str | bytes | Resized
"""A picture: the path as `os.fsdecode` gives it, the bytes of the file, or what another daemon made of it."""


@dataclass(frozen=True)
class EngineSettings:
    """What the engine process is started with; `config.ModelConfig` says what each means.

    state_dir: the directory for compiled and quantized models; None keeps nothing. memory_limit_bytes: what the process
    may take of main memory before the daemon ends it; None for no limit. part, parts: which of so many engines that
    share the processor's cores this is. server: the daemon whose model is asked, by its URL, instead of loading one;
    server_token: what it asks for; sends_resized: it gets pictures as large as its model sees them.
    """

    model: str
    revision: str | None = None
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    image_size: int | None = None
    fast_decode: bool = False
    num_beams: int = 3
    max_new_tokens: int = 1024
    max_batch: int = 0
    memory_limit_bytes: int | None = None
    offline: bool = False
    state_dir: str | None = None
    part: int = 0
    parts: int = 1
    server: str | None = None
    server_token: str | None = field(default=None, repr=False)
    sends_resized: bool = False

    @property
    def name(self) -> str:
        """What the engine is called where there are several."""
        return self.server or self.device


@dataclass(frozen=True)
class Request:
    """A picture and everything that is asked about it: it is decoded once and its vision part runs once.

    urgent: somebody waits for the answer, so it goes before the others that the engine holds.
    """

    id: int
    picture: Source
    asks: tuple[Ask, ...]
    urgent: bool = False


@dataclass(frozen=True)
class Answer:
    """One answer. result: a string, or the JSON form of boxes, quadrilaterals or polygons (upright pixels).

    tokens: how many the model wrote, its end among them; 0 where that is not known. is_cut: they are as many as it
    might write, so that it hardly came to its own end. prompt_tokens: how many it read, the picture's and the prompt's.
    """

    prompt: str
    result: str | dict[str, Any]
    tokens: int = 0
    is_cut: bool = False
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Stages:
    """Seconds that a request took of the engine: reading and resizing its picture, seeing it, reading and writing text.

    What several share, a batch of pictures or a step of the decoder, is divided among them.
    """

    decode_s: float = 0.0
    vision_s: float = 0.0
    text_s: float = 0.0


@dataclass(frozen=True)
class Served:
    """What a daemon elsewhere answers with: the settings of its model that decide a text, as it is configured."""

    name: str
    revision: str | None = None
    precision: str = "auto"
    image_size: int | None = None
    fast_decode: bool = False


@dataclass(frozen=True)
class Loaded:
    """The engine has its model: where it runs, how long loading took, and how many requests at once keep it busy.

    gpu_bytes: what it took of the GPU's memory; None where there is none, or it does not say. side_px: of the square
    that the model sees. served: what the daemon that is asked answers with; None for a model of our own.
    """

    device: str
    load_s: float
    in_flight: int
    gpu_bytes: int | None = None
    side_px: int | None = None
    served: Served | None = None


@dataclass(frozen=True)
class LoadFailed:
    """The engine cannot get its model, or has lost the daemon whose model it asks, and ends."""

    message: str


@dataclass(frozen=True)
class Begun:
    """The engine starts on request `id`: should the process end now, this picture is the suspect."""

    id: int


@dataclass(frozen=True)
class HasRead:
    """The picture of request `id` is read; from now on it is the model's turn."""

    id: int


@dataclass(frozen=True)
class Alive:
    """The model works: sent between its steps, about once a second.

    gpu_bytes: as in Loaded. in_flight: how many requests at once keep it busy by now; None: as many as before.
    """

    gpu_bytes: int | None = None
    in_flight: int | None = None


@dataclass(frozen=True)
class Done:
    """The answers to request `id`, in the order of its asks. size_px: the upright picture's (width, height).

    content: 16 bytes of BLAKE2b that stand for the file's bytes, where the engine read it from a path.
    """

    id: int
    answers: tuple[Answer, ...]
    size_px: tuple[int, int]
    stages: Stages
    content: bytes | None = None


@dataclass(frozen=True)
class Failed:
    """Request `id` has no answer. error: the class in `errors` that the parent raises for it."""

    id: int
    error: str
    message: str


Progress = Begun | HasRead | Done | Failed
"""How a request goes on, and how it ends."""

Reply = Loaded | LoadFailed | Alive | Progress


def error_of(failed: Failed) -> errors.FlorenceError:
    """The error that a failure stands for."""
    error: errors.FlorenceError = getattr(errors, failed.error, errors.EngineError)(failed.message)
    return error
