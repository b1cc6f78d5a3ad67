"""What a directory's own `.florence.yaml` says, and the settings that count there with those from above."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import attrs
from attrs import field, frozen

from florence_daemon.config import FolderConfig
from florence_daemon.config_checks import BadSetting
from florence_daemon.config_file import Places, converter, parse, problems_of, unknown
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import ConfigError
from florence_daemon.folders.names import is_taken

# What says which file an output is and what is asked for it; all its other settings may be given for all outputs.
OWN = ("prompt", "prompts", "ext", "text", "template")
OF_FOLDER = ("outputs", "overwrite", "include", "exclude")
# A file of settings holds some dozens of values. Anybody may have put it there, so no more are worked through.
MOST_VALUES = 2_000
# So many problems of one file are told, each in so many characters.
MOST_PROBLEMS = 5
PROBLEM_CHARS = 300


@frozen
class Settings:
    """What counts in a directory.

    folder: the watched folder, with the outputs and the rule of this directory. options: given for all outputs so far;
    they count for outputs that a directory below names. filters: include and exclude of each directory on the way; a
    picture must pass all. fixed: what no file may change.
    """

    folder: FolderConfig
    options: Mapping[str, Any] = field(factory=dict)
    filters: tuple[FolderConfig, ...] = ()
    fixed: frozenset[str] = frozenset()

    @property
    def outputs(self) -> tuple[OutputConfig, ...]:
        """What is written beside each picture."""
        return self.folder.outputs

    @property
    def overwrite(self) -> str:
        """What happens to sidecars that exist."""
        return self.folder.overwrite

    def takes(self, path: str) -> bool:
        """Tell whether the files on the way let a picture through; the watched folder's own settings are not asked."""
        name = os.path.basename(path)
        return all(is_taken(each, os.path.relpath(path, each.path), name) for each in self.filters)


class Override:
    """One file, read. It is untrusted: whatever is in it, reading it ends soon, and with settings or a ConfigError."""

    def __init__(self, path: str, content: bytes) -> None:
        """Raises: ConfigError, with every problem on a line of its own as `FILE:LINE: key: what is wrong`."""
        self._path = path
        self._places = Places(Path(path))
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: this is not UTF-8 text: {error.reason} at byte {error.start}") from None
        data = parse(text, self._places, expected=f"settings such as {', '.join(OF_FOLDER)}", at_most=MOST_VALUES)
        self._given: dict[str, Any] = {}
        problems = list(islice(self._structure(data), MOST_PROBLEMS))
        if problems:
            raise ConfigError("\n".join(problems))
        # Which options the outputs of this file give themselves: what is given for all does not touch those.
        outputs = data.get("outputs", [])
        self._said_by_outputs = [frozenset(output) for output in outputs]

    def over(self, above: Settings) -> Settings:
        """The settings that count where this file is, laid over those from above. Raises: ConfigError."""
        given = {name: value for name, value in self._given.items() if name not in above.fixed}
        options = {name: value for name, value in given.items() if name not in OF_FOLDER}
        if "overwrite" in given:
            options["overwrite"] = None  # this rule is nearer than one that an output from above has
        filtered = FolderConfig(
            path=Path(os.path.dirname(self._path)), include=given.get("include", ()), exclude=given.get("exclude", ())
        )
        try:
            folder = attrs.evolve(
                above.folder,
                outputs=self._outputs(above, given, options),
                overwrite=given.get("overwrite", above.overwrite),
            )
        except BadSetting as error:
            raise ConfigError(self._say((error.setting,), str(error))) from None
        return attrs.evolve(
            above, folder=folder, options={**above.options, **options}, filters=(*above.filters, filtered)
        )

    def _outputs(
        self, above: Settings, given: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[OutputConfig, ...]:
        if "outputs" not in given:
            return tuple(attrs.evolve(output, **options) for output in above.outputs)
        # A rule that is told for all outputs is told for these too, whatever they say themselves.
        told: dict[str, Any] = {"overwrite": None} if "overwrite" in above.fixed else {}
        inherited = {**told, **above.options, **options}
        return tuple(
            attrs.evolve(output, **{name: inherited[name] for name in inherited if name not in said - above.fixed})
            for output, said in zip(given["outputs"], self._said_by_outputs, strict=True)
        )

    def _structure(self, data: Mapping[Any, Any]) -> Iterator[str]:
        """Take each setting over in its type, and yield what is wrong with the others."""
        kinds = _kinds()
        reads = converter()
        for key, value in data.items():
            if key not in kinds:
                yield self._say((key,), unknown(str(key), list(kinds)))
                continue
            try:
                self._given[key] = reads.structure(value, kinds[key])
            except Exception as error:
                yield from (self._say(where, problem) for where, problem in problems_of(error, (key,)))

    def _say(self, where: tuple[Any, ...], problem: str) -> str:
        said = self._places.say(where, problem)
        return said if len(said) <= PROBLEM_CHARS else said[:PROBLEM_CHARS] + "…"


def _kinds() -> dict[str, Any]:
    """The settings that a file may have, with their types."""
    of_folder, of_output = get_type_hints(FolderConfig), get_type_hints(OutputConfig)
    options = (each.name for each in attrs.fields(OutputConfig) if each.name not in OWN)
    return {name: of_output[name] for name in options} | {name: of_folder[name] for name in OF_FOLDER}
