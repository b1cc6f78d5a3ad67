"""The export command: how far it is, which pictures were left out and why."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

from florence_daemon.datasets.export import Taken, Wish, export, survey
from florence_daemon.datasets.formats import names_split
from florence_daemon.datasets.samples import LeftOut, Tree
from florence_daemon.errors import UsageError
from florence_daemon.logs import printable
from florence_daemon.reporting import open_progress
from florence_daemon.signals import StopSignal

EXIT_SOME_LEFT_OUT = 1
EXIT_INTERRUPTED = 130
# Of so many pictures it is said why they were left out; the others are counted.
LISTED = 100


def open_tree(folder: Path, caption: str, tags: str, leave_out: Path | None = None) -> Tree:
    """The pictures below a folder. Raises: UsageError."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    return Tree(
        folder,
        suffix_of(caption),
        suffix_of(tags),
        _below(folder, leave_out),
        on_unreadable=lambda error: _say(f"{error.filename}: cannot be looked into: {error.strerror}"),
    )


def _below(folder: Path, target: Path | None) -> list[str]:
    """The target as a path from the folder on, if it is in there: an earlier export is no part of the next one."""
    if target is None or target.resolve() == folder.resolve() or folder.resolve() not in target.resolve().parents:
        return []
    return [str(folder / target.resolve().relative_to(folder.resolve()))]


def suffix_of(ext: str) -> str:
    """An ending with its dot. Raises: UsageError."""
    from florence_daemon.config_checks import BadSetting
    from florence_daemon.config_output import OutputConfig

    try:
        return f".{OutputConfig(prompt='CAPTION', ext=ext).ext.lstrip('.')}"
    except BadSetting as error:
        raise UsageError(f"{error}") from None


def run_export(tree: Tree, wish: Wish, *, as_json: bool) -> int:
    """Write a data set; return the exit code. Raises: UsageError, DatasetError."""
    total, has_tags = survey(tree)
    if not total:
        raise UsageError(f"{tree.folder}: there are no pictures below it")
    signals = StopSignal()
    taken, left_out, reasons, split = 0, 0, list[str](), ""
    progress = open_progress(total)
    try:
        with closing(export(tree, wish, has_tags, lambda: signals.is_set)) as outcomes:
            for outcome in outcomes:
                progress.advance(failed=isinstance(outcome, LeftOut))
                if as_json:
                    print(json.dumps(_as_json(outcome)))
                if isinstance(outcome, Taken):
                    taken += 1
                    split = split or (outcome.name if names_split(outcome.name) else "")
                    continue
                left_out += 1
                if len(reasons) < LISTED:
                    reasons.append(f"{printable(outcome.path)}: {printable(outcome.reason)}")
    except KeyboardInterrupt:
        reasons = ["interrupted; nothing was written"]
        return EXIT_INTERRUPTED
    finally:
        progress.close()
        for reason in reasons:
            _say(reason)
    if left_out > LISTED:
        _say(f"… and {left_out - LISTED} more; --json lists them all")
    if split and wish.format == "hf-imagefolder":
        _warn_of_split(split, wish.to, has_card=wish.to.resolve() != tree.folder.resolve())
    if not as_json:
        print(f"{wish.to}: {taken} pictures, {left_out} left out")
    return EXIT_SOME_LEFT_OUT if left_out else 0


def _warn_of_split(name: str, to: Path, *, has_card: bool) -> None:
    shown = f'load this as load_dataset("{printable(str(to))}")' if has_card else "name a folder of its own with --to"
    _say(
        f'{printable(name)} reads like a split\'s name: {shown}; with "imagefolder" and data_dir it would be split by '
        "such names, without its captions"
    )


def _as_json(outcome: Taken | LeftOut) -> dict[str, str]:
    if isinstance(outcome, Taken):
        return {"image": outcome.path, "name": outcome.name}
    return {"image": outcome.path, "error": outcome.reason}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
