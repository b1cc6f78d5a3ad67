"""What a backfill of several addresses has to do: the pictures that lack something, each with where it lies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import attrs

from florence_daemon.backfill import Backfill
from florence_daemon.cluster.addresses import Folder, Store, Tree
from florence_daemon.cluster.forms import RESERVED
from florence_daemon.cluster.objects import Objects, settings_of
from florence_daemon.config import Config, FolderConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import FlorenceError, UsageError
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.records import making_of
from florence_daemon.queue import Image


@dataclass(frozen=True)
class Errand:
    """A picture that is to be captioned. store: which of the trees it lies in; None for one that has a path."""

    image: Image
    store: int | None = None


@dataclass(frozen=True)
class Wish:
    """What is wanted of each picture.

    rewrites: what is there counts as not there. given: what no `.florence.yaml` may change of the outputs: these
    themselves, or options of them. is_apart: the results go elsewhere, so that no sidecar is looked for and no
    `.florence.yaml` is read.
    """

    outputs: tuple[OutputConfig, ...]
    rewrites: bool = False
    given: frozenset[str] = frozenset()
    is_apart: bool = False


class Due:
    """The pictures at some addresses that lack something; found by listing, at each call anew."""

    def __init__(
        self,
        trees: Sequence[Tree],
        wish: Wish,
        config: Config,
        *,
        done: Collection[str] = (),
        on_unreadable: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        """done: pictures whose results are elsewhere already. on_unreadable: told of what cannot be listed."""
        if wish.is_apart and any(each.is_xmp for each in wish.outputs):
            raise UsageError("--ext xmp: XMP is merged into files beside the pictures; leave out --to, or take txt")
        taken = next((each.ext for each in wish.outputs if each.ending.removeprefix(".") in RESERVED), None)
        if wish.is_apart and taken is not None:
            raise UsageError(f"--ext {taken}: with --to this says something else of a picture; give another, as txt")
        self._trees = trees
        self._wish = wish
        self._config = config
        self._done = done
        self._on_unreadable = on_unreadable
        self.found = 0  # pictures that the last look came upon, whether they lack something or not

    def errands(self, *, cleans: bool = False) -> Iterator[tuple[Errand, FlorenceError | None]]:
        """Each picture that lacks something, with the reason if it cannot have it.

        cleans: what processes that were killed left unfinished in folders is removed.
        """
        self.found = 0
        for is_folder, trees in itertools.groupby(enumerate(self._trees), lambda each: isinstance(each[1], Folder)):
            if is_folder:
                yield from self._in_folders([tree for _, tree in trees if isinstance(tree, Folder)], cleans)
                continue
            for number, tree in trees:
                if isinstance(tree, Store):
                    yield from self._in_store(number, tree)

    def _in_folders(self, folders: Sequence[Folder], cleans: bool) -> Iterator[tuple[Errand, FlorenceError | None]]:
        wish, ledger, before = self._wish, Ledger(), self.found
        work = Backfill(
            [folder.path for folder in folders],
            wish.outputs,
            ledger,
            partial(making_of, self._config.model),
            overwrite="always" if wish.rewrites or wish.is_apart else "never",
            given=wish.given,
            watched=self._watched(folders),
        )
        try:
            for image, reason in work.images(cleans=cleans):
                self.found = before + work.found
                if image.path not in self._done:
                    yield Errand(image), reason
            self.found = before + work.found
            for error in work.unreadable:
                self._on_unreadable(error)
        finally:
            ledger.close()

    def _watched(self, folders: Sequence[Folder]) -> Sequence[FolderConfig]:
        """Where `.florence.yaml` files count from; with results elsewhere they do not count."""
        if not self._wish.is_apart:
            return self._config.folders
        roots = [folder.path.parent if folder.path.is_file() else folder.path for folder in folders]
        return [FolderConfig(path=root, inherit=False) for root in roots]

    def _in_store(self, number: int, store: Store) -> Iterator[tuple[Errand, FlorenceError | None]]:
        wish, before = self._wish, self.found
        options = {name: getattr(wish.outputs[0], name) for name in wish.given if name != "outputs"}
        # A rule that an output has itself is for what is there, which here either all stays or all is replaced.
        outputs = tuple(attrs.evolve(each, overwrite=None) for each in wish.outputs)
        objects = Objects(
            store,
            settings_of(store, outputs, options, wish.given),
            inherits=not wish.is_apart,
            rewrites=wish.rewrites or wish.is_apart,
            on_unreadable=self._on_unreadable,
        )
        for image, reason in objects.images():
            self.found = before + objects.found
            if image.path not in self._done:
                yield Errand(image, number), reason
        self.found = before + objects.found
