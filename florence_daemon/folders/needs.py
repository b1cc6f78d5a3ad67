"""What does an image need? Its missing sidecars, and by the folder's rule (never, stale, always) outdated ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from florence_daemon.config_output import ADDS, OutputConfig
from florence_daemon.errors import SharedSidecar
from florence_daemon.folders.atomic import content_of
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.records import Entry, Failure, Making, Written
from florence_daemon.folders.settle import stamp_of
from florence_daemon.folders.sidecars import sidecar_path
from florence_daemon.folders.xmp_sidecar import has_words

Makes = Callable[[OutputConfig], Making]
"""How each output is made now."""


class Needs:
    """Compares the files with the ledger. Threads may share it."""

    def __init__(self, ledger: Ledger, makes: Makes) -> None:
        self._ledger = ledger
        self._makes = makes

    def due(
        self,
        path: str,
        outputs: Collection[OutputConfig],
        overwrite: str,
        entry: Entry | None,
        exists: Callable[[str], bool] = os.path.lexists,
    ) -> tuple[OutputConfig, ...]:
        """The outputs that are to be written. exists: whether there is a sidecar of this path; a link counts too.

        never: those that are missing. stale: also those that this program wrote and nobody changed since, whose
        picture, model, prompt or settings are not what they were. always: also those by anybody, for the same reasons,
        or when the ledger knows nothing of them. append, prepend: also those that these prompts added nothing to yet.
        An output's own rule goes before this one.
        """
        due = []
        for output in outputs:
            sidecar, rule = sidecar_path(path, output, exists), output.rule(overwrite)
            is_due = self._is_merged if output.is_xmp else self._is_replaced
            if not exists(sidecar) or is_due(path, sidecar, output, rule, entry):
                due.append(output)
        return tuple(due)

    def may_try(self, failure: Failure | None, path: str) -> bool:
        """Tell whether an image that failed is to be tried again: when its time has come, or the file has changed."""
        if failure is None or failure.error == SharedSidecar.__name__ or failure.is_due(self._ledger.now_s()):
            return True
        return failure.stamp != stamp_of(path)

    def _is_replaced(self, path: str, sidecar: str, output: OutputConfig, rule: str, entry: Entry | None) -> bool:
        """Tell whether a sidecar that is there is written anew, or added to."""
        if rule == "never":
            return False
        written = [each for each in entry.written if each.suffix == output.ending] if entry is not None else []
        if rule in ADDS:
            # A ledger that failed does not know what was added already, and by now may have been edited.
            prompt = self._makes(output).prompt
            return self._ledger.health is None and all(each.making.prompt != prompt for each in written)
        return self._is_outdated(path, sidecar, output, rule, written)

    def _is_merged(self, path: str, sidecar: str, output: OutputConfig, rule: str, entry: Entry | None) -> bool:
        """Tell whether words are merged into an XMP that is there: a person's has none of ours yet, ours may be old."""
        written = [each for each in entry.written if each.suffix == output.ending] if entry is not None else []
        if written:
            return rule != "never" and not self._is_current(path, written[-1], self._makes(output))
        if rule == "always":
            return self._ledger.health is None
        return not has_words(sidecar)

    def _is_outdated(
        self, path: str, sidecar: str, output: OutputConfig, overwrite: str, written: Sequence[Written]
    ) -> bool:
        if not written:
            # A ledger that failed knows nothing: all would be written anew, over the lines that people edited since.
            return overwrite == "always" and self._ledger.health is None
        making = self._makes(output)
        if all(self._is_current(path, each, making) for each in written):
            return False
        # Only now is the sidecar read: which of the texts is it, or is it a person's?
        digest = content_of(sidecar)
        ours = next((each for each in written if each.digest == digest), None)
        if ours is None:
            return overwrite == "always"
        return not self._is_current(path, ours, making)

    def _is_current(self, path: str, written: Written, making: Making) -> bool:
        """Tell whether a sidecar tells about this very picture, and would be made in the same way today."""
        if not written.making.is_same(making):
            return False
        stamp = stamp_of(path)
        if stamp is None or (written.size_bytes, written.mtime_ns) == (stamp.size_bytes, stamp.mtime_ns):
            return True
        if written.size_bytes != stamp.size_bytes or written.content is None or written.content != content_of(path):
            return False
        # Touched or copied: noted, so that it is not read again at every scan.
        self._ledger.writing(path, [replace(written, mtime_ns=stamp.mtime_ns)])
        return True


def leaves_existing(outputs: Collection[OutputConfig], overwrite: str) -> bool:
    """Tell whether sidecars that are there stay, whatever the ledger knows of them."""
    return all(output.rule(overwrite) == "never" and not output.is_xmp for output in outputs)


def owner_of(names: Collection[str], entry_of: Callable[[str], Entry | None]) -> str:
    """Which of the pictures that share a sidecar has it: the one that it was written for, else the first by name."""
    written = [name for name in names if (entry := entry_of(name)) is not None and entry.written]
    return min(written or names)


def shared_sidecar(path: str, owner: str, outputs: Collection[OutputConfig]) -> SharedSidecar:
    """The error for `a.png` beside `a.jpg`: both would write `a.txt`."""
    names = ", ".join(os.path.basename(sidecar_path(path, output)) for output in outputs)
    return SharedSidecar(f"its sidecar {names} belongs to {owner} in the same folder; rename one of the two")
