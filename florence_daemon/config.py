"""The settings: one frozen class per section, and the one home of every default."""

from __future__ import annotations

import ipaddress
import re
import string
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from florence_daemon import tasks
from florence_daemon.errors import PromptError
from florence_daemon.folders import exiftool

# Suffixes of files that are pictures; anything else in a folder is left alone. The decoder looks at the bytes instead.
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        ("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
    )
)


# What may become of a sidecar that is there already; of these, what adds to it.
RULES = ("never", "stale", "append", "prepend", "always")
ADDS = ("append", "prepend")
# What no file system that people use takes in a name, and what stands for a directory.
NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')

# The value of `server.token` that says: I know that nobody needs one, and want it so.
OPEN = "none"


class BadSetting(ValueError):
    """A value that its own setting refuses; carries the setting's name up to where file and line are known."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(problem)
        self.setting = setting


class MissingToken(BadSetting):
    """The network is let in, and nothing says who of it."""


def _between(low: float, high: float, also: float | None = None) -> Any:
    """Accept numbers from `low` to `high`, and the special value `also`."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: float) -> None:
        if value == also or low <= value <= high:
            return
        special = "" if also is None else f", or {also}"
        raise BadSetting(attribute.name, f"{value!r} is out of range; give {low:g} to {high:g}{special}")

    return check


def _multiple_of(step: int, low: int, high: int) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: int) -> None:
        if not low <= value <= high or value % step:
            raise BadSetting(attribute.name, f"{value!r} is not possible; give a multiple of {step}, {low} to {high}")

    return check


def _one_of(*choices: str) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in choices:
            raise BadSetting(attribute.name, f"{value!r} is not known; give one of {', '.join(choices)}")

    return check


def _device(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise BadSetting(attribute.name, f"{value!r} is not known; give auto, cpu, cuda, cuda:1, … or mps")


def _not_empty(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not value:
        raise BadSetting(attribute.name, "must not be empty; leave the line out to get the default")


def _extension(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    name = value.removeprefix(".")
    if not 0 < len(name) <= 64 or name.startswith(".") or name.endswith((".", " ")) or NOT_IN_NAMES.search(name):
        raise BadSetting(attribute.name, f"{value!r} is not a file name's ending; give letters and digits, as in txt")
    if f".{name.lower().rpartition('.')[2]}" in IMAGE_SUFFIXES:
        raise BadSetting(
            attribute.name, f"{value!r} is a picture's ending, and a caption must never overwrite a picture"
        )


def _distinct_extensions(_: Any, attribute: attrs.Attribute[Any], value: tuple[OutputConfig, ...]) -> None:
    endings = [output.ending.lower() for output in value]
    twice = next((ending for ending in endings if endings.count(ending) > 1), None)
    if twice is not None:
        raise BadSetting(
            attribute.name, f"two outputs write {twice!r}; give each its own ext, or one of them both as its prompts"
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`; of names, localhost alone is trusted, none is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bearer(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    # What RFC 6750 allows in a header. The token itself stays out of the message, which goes to logs.
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", value):
        raise BadSetting(attribute.name, "holds what a header cannot carry; give letters, digits and any of ._~+/-")


def _host_names(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+", name):
            raise BadSetting(attribute.name, f"{name!r} is not a host's name; give it alone, as in photos.example.org")


def _image_hosts(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for name in value:
        if name != "*" and not re.fullmatch(r"[A-Za-z0-9.-]+", name):
            raise BadSetting(attribute.name, f"{name!r} is not a host's name; give one as in images.example.org, or *")


def _origins(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for origin in value:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+", origin):
            raise BadSetting(
                attribute.name, f"{origin!r} is not an origin; give one such as https://photos.example.org"
            )


@frozen
class ModelConfig:
    """Which model answers, and how long it stays."""

    # A Hub id, a local directory, or `demo` (the small model that comes with the program).
    name: str = field(default="MiaoshouAI/Florence-2-large-PromptGen-v2.0", validator=_not_empty)
    # Branch, tag or commit of the Hub repository; null takes its main branch.
    revision: str | None = None
    # auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps.
    device: str = field(default="auto", validator=_device)
    # auto (float16 on a GPU; on a CPU int8 where `florence-daemon quantize` has proved it, else float32), float32,
    # float16, bfloat16, int8.
    precision: str = field(default="auto", validator=_one_of("auto", "float32", "float16", "bfloat16", "int8"))
    # auto (openvino on a CPU where it is installed, else torch), openvino, torch, transformers (the slower reference).
    engine: str = field(default="auto", validator=_one_of("auto", "openvino", "torch", "transformers"))
    # Side in pixels to which pictures are scaled, a multiple of 32: 768 is what Florence-2 was trained with,
    # 576, 480 and 384 are faster and see less; null takes what the checkpoint says.
    image_size: int | None = field(default=None, validator=attrs.validators.optional(_multiple_of(32, 32, 1600)))
    # true lets large JPEGs be decoded at a smaller scale also where that changes pixels a little.
    fast_decode: bool = False
    # Beams of the search: 1 is greedy and fastest; 3 is what Florence-2 was published with.
    num_beams: int = field(default=3, validator=_between(1, 16))
    # Longest answer, in tokens; the model's position table is the upper bound.
    max_new_tokens: int = field(default=1024, validator=_between(1, 4096))
    # Questions that are answered side by side; 0 takes as many as fit into memory.
    max_batch: int = field(default=0, validator=_between(0, 256))
    # Seconds without work after which the engine process ends and gives its memory back;
    # 0 ends it as soon as the queue is empty, -1 keeps it for ever.
    idle_unload_s: float = field(default=300.0, validator=_between(0, 30 * 24 * 3600, also=-1))
    # Megabytes of main memory that the engine process may take; beyond, it is ended and started anew, and the picture
    # is set aside when that happens three times. 0 takes nine tenths of what the machine or its control group has,
    # -1 sets no limit. Known on Linux only.
    memory_limit_mb: int = field(default=0, validator=_between(0, 2**24, also=-1))
    # Seconds that one picture may take to be read; beyond, the engine process is ended and started anew, as above.
    decode_limit_s: float = field(default=60.0, validator=_between(0.1, 24 * 3600))
    # Seconds that the model may show no life while it has a picture, as when a driver hangs; beyond, the same.
    request_limit_s: float = field(default=300.0, validator=_between(1, 24 * 3600))
    # Seconds that loading the model may take, with its download and what is compiled for this machine.
    load_limit_s: float = field(default=3600.0, validator=_between(1, 7 * 24 * 3600))
    # true never asks the Hub: the checkpoint must be on this machine already.
    offline: bool = False


@frozen
class ServerConfig:
    """Where the HTTP API listens, and what it accepts."""

    # 127.0.0.1 serves this machine alone; 0.0.0.0 serves the network, and needs a token.
    host: str = field(default="127.0.0.1", validator=_not_empty)
    # 0 takes a free port and prints it.
    port: int = field(default=54880, validator=_between(0, 65535))
    # What every request but those for health must bring, as `Authorization: Bearer TOKEN`; null asks for none, which
    # is refused beyond this machine; `none` asks for none there either: whoever reaches the port may do everything.
    token: str | None = field(default=None, validator=attrs.validators.optional(_bearer), repr=False)
    # Names under which clients reach the server, besides localhost, the addresses it listens on, and this machine's
    # name when it serves the network. Others are refused, or a web page could reach it by a name of its own.
    allowed_hosts: tuple[str, ...] = field(default=(), validator=_host_names)
    # Origins of other sites whose pages may use the API from a browser, as in https://photos.example.org (CORS).
    allowed_origins: tuple[str, ...] = field(default=(), validator=_origins)
    # Hosts from which /v1/chat/completions may fetch a picture by its https: address, as in images.example.org; "*" for
    # every public one. Empty fetches none: the request holds the picture itself.
    image_hosts: tuple[str, ...] = field(default=(), validator=_image_hosts)
    # Largest request, in megabytes of 1024 × 1024 bytes.
    max_body_mb: float = field(default=32.0, validator=_between(0.001, 1024))
    # Requests that may wait or run at once; one more is answered 503 with Retry-After.
    max_queued: int = field(default=32, validator=_between(1, 1000))
    # Seconds within which a request must have arrived, from its first byte to its last; its head gets 10 at most.
    receive_timeout_s: float = field(default=60.0, validator=_between(0.1, 24 * 3600))
    # Seconds after which a request that has no answer yet is given up with 504; loading the model counts.
    request_timeout_s: float = field(default=600.0, validator=_between(1, 24 * 3600))

    def __attrs_post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise MissingToken(
                "host",
                f"{self.host!r} lets other machines in, and server.token is not set. Set it to something long and "
                "random, such as `openssl rand -hex 32` prints, in the file or as FLORENCE_DAEMON_SERVER__TOKEN; or "
                "write `token: none` to let in whoever reaches the port",
            )

    @property
    def required_token(self) -> str | None:
        """The token that requests must bring; None where none is asked for."""
        return None if self.token == OPEN else self.token


def _asks_something(output: OutputConfig, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is None and not output.prompts:
        raise BadSetting(attribute.name, "is missing; give a prompt's name, or several as prompts: [NAME, …]")
    if value is not None and output.prompts:
        raise BadSetting(attribute.name, "is given, and prompts too; put all names into prompts")
    try:
        asked = output.asked
    except PromptError as error:
        raise BadSetting(attribute.name if value is not None else "prompts", str(error)) from None
    twice = next((token for token, text in asked if asked.count((token, text)) > 1), None)
    if twice is not None:
        raise BadSetting("prompts", f"{twice} is there twice")


def _template(output: OutputConfig, attribute: attrs.Attribute[Any], value: str | None) -> None:
    """A template may hold the names of its output's parts, and each part that is set must be in it."""
    if value is None:
        return
    if output.has_places:
        raise BadSetting(attribute.name, f"{value!r} is not possible: a prompt of this output finds places, not words")
    known = output.template_names
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(value) if name is not None]
    except ValueError as error:
        raise BadSetting(
            attribute.name, f"{value!r} is no template: {error}; a brace itself is written twice"
        ) from None
    for name, spec, how in fields:
        if name not in known or spec or how:
            shown = ", ".join(f"{{{each}}}" for each in known)
            raise BadSetting(attribute.name, f"{{{name}}} is not known here; this output has {shown}")
    names = {name for name, _, _ in fields}
    if not names - {"prefix", "suffix"}:
        raise BadSetting(attribute.name, f"{value!r} has no place for an answer; give one, such as {{{known[0]}}}")
    placed = {*names, *output.captioning[: "caption" in names], *output.tagging[: "tags" in names]}
    wanted = [*(part for part in ("prefix", "suffix") if getattr(output, part)), *output.prompt_names]
    for part in wanted:
        if part not in placed:
            raise BadSetting(attribute.name, f"{value!r} has no place for {part}; put {{{part}}} in, or leave it out")


def _in_one_line(output: OutputConfig, attribute: attrs.Attribute[Any], value: str | None) -> None:
    _writable(attribute.name, value or "")
    if value and output.lines == "one" and value.splitlines() != [value]:
        raise BadSetting(attribute.name, f"{value!r} has a line break, and lines is one; set lines to several")


def _writable(setting: str, value: str) -> None:
    """Refuse bytes that are no text: an argument of the command line can hold any, and `\\ud800` in YAML is one too."""
    if re.search(r"[\ud800-\udfff]", value):
        raise BadSetting(setting, f"{value!r} cannot be written as UTF-8; give text")


def _none_empty(_: Any, attribute: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:
    _writable(attribute.name, "".join(each if isinstance(each, str) else "".join(each) for each in value))
    if any(not (each if isinstance(each, str) else each[0]).strip() for each in value):
        raise BadSetting(attribute.name, "an entry is empty, and would stand for everything; leave it out")


def _adds_to_text(output: OutputConfig, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value in ADDS and output.is_structured:
        raise BadSetting(attribute.name, f"{value!r} is not possible: nothing can be added to places, which are JSON")


def _into_xmp(output: OutputConfig, attribute: attrs.Attribute[Any], value: bool) -> None:
    if output.is_xmp and output.has_places:
        raise BadSetting("ext", f"{output.ext!r} takes words, and a prompt of this output finds places; give it json")
    if output.is_xmp and (output.template is not None or output.prefix or output.suffix):
        raise BadSetting("ext", f"{output.ext!r} keeps captions and tags apart: it has no template, prefix or suffix")
    if value and not output.is_xmp:
        raise BadSetting(attribute.name, f"is possible with ext xmp alone, not with {output.ext!r}")
    if value and not exiftool.is_installed():
        raise BadSetting(attribute.name, f"needs exiftool, which is not installed; {exiftool.INSTALL}")


@frozen(kw_only=True)
class OutputConfig:
    """One sidecar per image: what is asked, the file that gets the answers, and how they become its text."""

    # A prompt's name, with or without angle brackets: MORE_DETAILED_CAPTION. Null where there are several.
    prompt: str | None = field(default=None, validator=_asks_something)
    # Several prompts whose answers go into one file, in this order or as the template says.
    prompts: tuple[str, ...] = ()
    # Ending of the sidecar: `txt` makes a.jpg's answer a.txt.
    ext: str = field(validator=_extension)
    # What a prompt that takes text or a region gets, as OPEN_VOCABULARY_DETECTION does: a red car.
    text: str | None = None
    # Beams of the search, and the longest answer in tokens; null takes the model's setting.
    num_beams: int | None = field(default=None, validator=attrs.validators.optional(_between(1, 16)))
    max_new_tokens: int | None = field(default=None, validator=attrs.validators.optional(_between(1, 4096)))
    # What becomes of this sidecar where it is there already; null takes the folder's rule.
    overwrite: str | None = field(default=None, validator=[attrs.validators.optional(_one_of(*RULES)), _adds_to_text])
    # How the parts make up the text: "{prefix}{caption}, {tags}". Known are {prefix}, {suffix}, {caption}, {tags}, and
    # each prompt by its name, {OCR}. What is empty goes, with what stands before it. Null joins the answers.
    template: str | None = field(default=None, validator=[_template, _in_one_line])
    # Put before and behind the text as they are: a trigger word with its comma, "ohwx, ".
    prefix: str = field(default="", validator=_in_one_line)
    suffix: str = field(default="", validator=_in_one_line)
    # Openings of captions that are taken off, in any case: ["The image shows", "This is a photo of"].
    strip: tuple[str, ...] = field(default=(), validator=_none_empty)
    # Most words of a caption; 0 takes all.
    max_words: int = field(default=0, validator=_between(0, 10_000))
    # keep, or spaces: in tags of more than three characters, an underscore becomes a space (^_^ stays).
    underscores: str = field(default="keep", validator=_one_of("keep", "spaces"))
    # Tags that are left out; * stands for anything. Case, underscores and escaped parentheses make no difference.
    exclude_tags: tuple[str, ...] = field(default=(), validator=_none_empty)
    # Tags that are written otherwise: {1girl: woman}.
    replace_tags: tuple[tuple[str, str], ...] = field(default=(), validator=_none_empty)
    # Tags that come first, in this order, where the answer has them.
    first_tags: tuple[str, ...] = field(default=(), validator=_none_empty)
    # Most tags of an answer, counted when all that is done; 0 takes all.
    max_tags: int = field(default=0, validator=_between(0, 10_000))
    # keep, lower, or sentence (a caption begins with a capital letter).
    case: str = field(default="keep", validator=_one_of("keep", "lower", "sentence"))
    # keep, escape (\( and \) as prompts of image generators want them), or plain (the backslashes taken off).
    parentheses: str = field(default="keep", validator=_one_of("keep", "escape", "plain"))
    # one (what trainers read), or several: an answer's lines stay lines.
    lines: str = field(default="one", validator=_one_of("one", "several"))
    # What is put between lines and answers that are joined; null takes ", ", and a space behind a sentence.
    join: str | None = field(default=None, validator=_in_one_line)
    # true, with ext xmp alone, puts the same into the picture's own metadata too; that needs exiftool.
    embed: bool = field(default=False, validator=_into_xmp)

    @property
    def ending(self) -> str:
        """The ending with its dot, `.txt`."""
        return f".{self.ext.removeprefix('.')}"

    @property
    def asked(self) -> tuple[tuple[str, str | None], ...]:
        """What is asked: each prompt in its one spelling, `<CAPTION>`, with its text. Raises: PromptError."""
        names = (self.prompt,) if self.prompt is not None else self.prompts
        takes = [tasks.split_prompt(name)[0].needs != "nothing" for name in names]
        # Of several, the text is for those that take one; when none does, the first says so.
        has_text = [each or not any(takes) for each in takes]
        found = [tasks.find_task(name, self.text if has else None) for name, has in zip(names, has_text, strict=True)]
        return tuple((task.token, text) for task, text in found)

    @property
    def template_names(self) -> tuple[str, ...]:
        """What a template of this output may hold."""
        kinds = [name for name, has_it in (("caption", self.captioning), ("tags", self.tagging)) if has_it]
        return (*kinds, *self.prompt_names, "prefix", "suffix")

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The names of its prompts, without brackets."""
        return tuple(token.strip("<>") for token, _ in self.asked)

    @property
    def captioning(self) -> tuple[str, ...]:
        """Those of its prompts that give a caption."""
        return tuple(name for name in self.prompt_names if name != "GENERATE_TAGS")

    @property
    def tagging(self) -> tuple[str, ...]:
        """Those of its prompts that give tags."""
        return tuple(name for name in self.prompt_names if name == "GENERATE_TAGS" or name.startswith("MIXED_"))

    @property
    def has_places(self) -> bool:
        """Whether a prompt answers with boxes or outlines, which are JSON."""
        return any(tasks.split_prompt(token)[0].answer not in ("text", "tags") for token, _ in self.asked)

    @property
    def is_structured(self) -> bool:
        """Whether the sidecar is JSON: by its ending, or since it holds places."""
        return self.has_places or (self.ending.lower() == ".json" and self.template is None)

    @property
    def is_xmp(self) -> bool:
        """Whether the sidecar is XMP, which is merged into, whatever the rule."""
        return self.ending.lower() == ".xmp"

    def rule(self, folder: str) -> str:
        """What becomes of this sidecar where it is there already. folder: the folder's rule."""
        rule = self.overwrite or folder
        return "never" if rule in ADDS and (self.is_structured or self.is_xmp) else rule


DEFAULT_OUTPUTS = (
    OutputConfig(prompt="MORE_DETAILED_CAPTION", ext="txt"),
    OutputConfig(prompt="GENERATE_TAGS", ext="tag"),
)


@frozen
class FolderConfig:
    """A folder whose pictures are captioned as they come."""

    # Relative paths start at the configuration file; ~ is your home.
    path: Path
    # false looks at the folder itself only.
    recursive: bool = True
    # Patterns of names or relative paths to take (*.jpg, 2024/*); empty takes every picture.
    include: tuple[str, ...] = ()
    # Patterns of names or relative paths to leave out; they win over include.
    exclude: tuple[str, ...] = ()
    # What is written beside each picture.
    outputs: tuple[OutputConfig, ...] = field(default=DEFAULT_OUTPUTS, validator=[_not_empty, _distinct_extensions])
    # never leaves sidecars that exist alone; stale rewrites those that this program wrote and nobody changed since,
    # once their picture, the model, the prompt or a setting that shapes the text has changed; always also others'.
    # append and prepend add the text to what is there, once.
    overwrite: str = field(default="never", validator=_one_of(*RULES))
    # Seconds a file must stay unchanged before it is read.
    settle_s: float = field(default=1.0, validator=_between(0, 3600))
    # auto (told of changes by the file system; network shares, which do not tell, are looked at every poll_s),
    # always (looked at every poll_s only), never (told of changes only, whatever the file system).
    poll: str = field(default="auto", validator=_one_of("auto", "always", "never"))
    # Seconds between two looks at a folder that does not tell of its changes.
    poll_s: float = field(default=10.0, validator=_between(1, 24 * 3600))
    # Seconds between two looks at a folder that does; they find what was not told.
    rescan_s: float = field(default=300.0, validator=_between(1, 7 * 24 * 3600))
    # true lets a file .florence.yaml in any of its directories set outputs, overwrite, include, exclude and options of
    # all outputs for that directory and those below; false takes no notice of such files.
    inherit: bool = True


@frozen
class StateConfig:
    """Where the program keeps what it makes for itself; nothing of yours is in there."""

    # The ledger (on a local disk, please), compiled and quantized models; null takes the system's place for such files.
    dir: Path | None = None


@frozen
class Config:
    """Everything that can be set."""

    model: ModelConfig = field(factory=ModelConfig)
    server: ServerConfig = field(factory=ServerConfig)
    folders: tuple[FolderConfig, ...] = ()
    state: StateConfig = field(factory=StateConfig)
