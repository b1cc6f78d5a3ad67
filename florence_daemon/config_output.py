"""The settings of one sidecar: what is asked, the file that gets the answers, and how they become its text."""

from __future__ import annotations

import re
import string
from typing import Any

import attrs
from attrs import field, frozen

from florence_daemon import tasks
from florence_daemon.config_checks import BadSetting, between, one_of
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


def _extension(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    name = value.removeprefix(".")
    if not 0 < len(name) <= 64 or name.startswith(".") or name.endswith((".", " ")) or NOT_IN_NAMES.search(name):
        raise BadSetting(attribute.name, f"{value!r} is not a file name's ending; give letters and digits, as in txt")
    if f".{name.lower().rpartition('.')[2]}" in IMAGE_SUFFIXES:
        raise BadSetting(
            attribute.name, f"{value!r} is a picture's ending, and a caption must never overwrite a picture"
        )


def distinct_extensions(_: Any, attribute: attrs.Attribute[Any], value: tuple[OutputConfig, ...]) -> None:
    endings = [output.ending.lower() for output in value]
    twice = next((ending for ending in endings if endings.count(ending) > 1), None)
    if twice is not None:
        raise BadSetting(
            attribute.name, f"two outputs write {twice!r}; give each its own ext, or one of them both as its prompts"
        )


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
    num_beams: int | None = field(default=None, validator=attrs.validators.optional(between(1, 16)))
    max_new_tokens: int | None = field(default=None, validator=attrs.validators.optional(between(1, 4096)))
    # What becomes of this sidecar where it is there already; null takes the folder's rule.
    overwrite: str | None = field(default=None, validator=[attrs.validators.optional(one_of(*RULES)), _adds_to_text])
    # How the parts make up the text: "{prefix}{caption}, {tags}". Known are {prefix}, {suffix}, {caption}, {tags}, and
    # each prompt by its name, {OCR}. What is empty goes, with what stands before it. Null joins the answers.
    template: str | None = field(default=None, validator=[_template, _in_one_line])
    # Put before and behind the text as they are: a trigger word with its comma, "ohwx, ".
    prefix: str = field(default="", validator=_in_one_line)
    suffix: str = field(default="", validator=_in_one_line)
    # Openings of captions that are taken off, in any case: ["The image shows", "This is a photo of"].
    strip: tuple[str, ...] = field(default=(), validator=_none_empty)
    # Most words of a caption; 0 takes all.
    max_words: int = field(default=0, validator=between(0, 10_000))
    # keep, or spaces: in tags of more than three characters, an underscore becomes a space (^_^ stays).
    underscores: str = field(default="keep", validator=one_of("keep", "spaces"))
    # Tags that are left out; * stands for anything. Case, underscores and escaped parentheses make no difference.
    exclude_tags: tuple[str, ...] = field(default=(), validator=_none_empty)
    # Tags that are written otherwise: {1girl: woman}.
    replace_tags: tuple[tuple[str, str], ...] = field(default=(), validator=_none_empty)
    # Tags that come first, in this order, where the answer has them.
    first_tags: tuple[str, ...] = field(default=(), validator=_none_empty)
    # Most tags of an answer, counted when all that is done; 0 takes all.
    max_tags: int = field(default=0, validator=between(0, 10_000))
    # keep, lower, or sentence (a caption begins with a capital letter).
    case: str = field(default="keep", validator=one_of("keep", "lower", "sentence"))
    # keep, escape (\( and \) as prompts of image generators want them), or plain (the backslashes taken off).
    parentheses: str = field(default="keep", validator=one_of("keep", "escape", "plain"))
    # one (what trainers read), or several: an answer's lines stay lines.
    lines: str = field(default="one", validator=one_of("one", "several"))
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
