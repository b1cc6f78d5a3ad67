"""What the ledger remembers of an image: how its sidecars were made, what went wrong, when it is tried again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import attrs

from florence_daemon.config import ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.folders.settle import Stamp

# A picture whose claim was left this often by a process that died while at it is set aside, for so long at first. It
# is not for ever: whoever kills the daemon three times may have met the same good picture each time.
MAX_LEFT = 3
FIRST_ASIDE_S = 10.0
# Seconds until a failure that may heal is tried again: doubled at each failure, up to the longest.
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 6 * 3600.0
# The digest that stands for "there is more than this program's in it": no text has it, so none is taken for its own.
PERSON = bytes(16)
# What decides which file is written and when, not what is in it; prompts and their texts are kept apart.
SHAPES_NOTHING = ("prompt", "prompts", "text", "ext", "overwrite")


@dataclass(frozen=True)
class Making:
    """What decides a text besides the picture.

    model: empty while it is not known, as no server has answered yet.
    settings: a hash of the engine's settings, empty when unknown, as at a server elsewhere; and behind a plus sign one
    of the output's options, where they are not the defaults.
    """

    model: str
    prompt: str
    settings: str

    def is_same(self, other: Making) -> bool:
        """Tell whether the same text is to be expected. A model or settings that are unknown count as the same."""
        (engine, _, shape), (engine_of_other, _, shape_of_other) = (
            each.settings.partition("+") for each in (self, other)
        )
        is_known = engine and engine_of_other
        is_same_model = not self.model or not other.model or self.model == other.model
        return (self.prompt, shape) == (other.prompt, shape_of_other) and not (
            not is_same_model or (is_known and engine != engine_of_other)
        )


@dataclass(frozen=True)
class Written:
    """A sidecar that this program wrote.

    digest: of its bytes, or PERSON. size_bytes, mtime_ns, content: of the picture that it tells about; content is the
    digest of the picture's bytes, None when they could not be read.
    """

    suffix: str
    digest: bytes
    size_bytes: int
    mtime_ns: int
    content: bytes | None
    making: Making


@dataclass(frozen=True)
class Failure:
    """An image that was not captioned.

    attempts: how often it was tried as it is. error: the class in `errors`. stamp: the file that failed.
    next_try_s: seconds since the epoch; None waits until the file changes, or until somebody asks for it.
    """

    path: str
    reason: str
    attempts: int
    stamp: Stamp | None
    error: str = "FlorenceError"
    next_try_s: float | None = None

    def is_due(self, now_s: float) -> bool:
        """Tell whether it is time to try again. A wait longer than the longest is the clock's fault, not a wait."""
        return self.next_try_s is not None and not 0 < self.next_try_s - now_s <= LONGEST_RETRY_S


@dataclass(frozen=True)
class Entry:
    """What is known of one image. left: how often a process died while it was at it, in a row."""

    failure: Failure | None = None
    left: int = 0
    written: tuple[Written, ...] = ()


def making_of(model: ModelConfig, output: OutputConfig) -> Making:
    """How this configuration makes this output. Where it runs (engine, device) is meant to change no text."""
    num_beams, max_new_tokens = output.num_beams or model.num_beams, output.max_new_tokens or model.max_new_tokens
    settings = (model.precision, model.image_size, model.fast_decode, num_beams, max_new_tokens)
    name = model.name if model.revision is None else f"{model.name}@{model.revision}"
    return Making(name, prompt_of(output), digest_of(repr(settings).encode()).hex() + shape_of(output))


def prompt_of(output: OutputConfig) -> str:
    """The prompts in their one spelling, with their texts: <CAPTION> however it was written."""
    return "".join(token + (text or "") for token, text in output.asked)


def shape_of(output: OutputConfig) -> str:
    """What stands for the options that shape an output's text, behind a plus sign; empty when all are the defaults.

    Options that a later version adds change nothing, so no text is made anew for them.
    """
    chosen = [
        (each.name, getattr(output, each.name))
        for each in attrs.fields(OutputConfig)
        if each.name not in SHAPES_NOTHING and getattr(output, each.name) != each.default
    ]
    return f"+{digest_of(repr(chosen).encode('utf-8', 'surrogatepass')).hex()}" if chosen else ""


def digest_of(content: bytes) -> bytes:
    """What stands for these bytes: two texts or pictures do not share one (16 bytes of BLAKE2b)."""
    return hashlib.blake2b(content, digest_size=16).digest()


def retry_after_s(attempts: int) -> float:
    """How long to wait after so many failures in a row: 1 s, 2 s, 4 s, … 6 hours."""
    return float(min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(attempts - 1, 20)))


def key_of(path: str) -> tuple[bytes, bytes]:
    """Directory and name as bytes: names need not be UTF-8."""
    directory, name = os.path.split(os.path.abspath(path))
    return os.fsencode(directory), os.fsencode(name)
