"""One engine of the cluster: it answers what a batch asks, and its answers are written by the batch's writer."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from florence_daemon.cluster.addresses import Store, Tree, one_line
from florence_daemon.cluster.due import Errand
from florence_daemon.cluster.forms import Record
from florence_daemon.cluster.parts import Parts
from florence_daemon.config import Config
from florence_daemon.config_output import OutputConfig
from florence_daemon.daemon import Works
from florence_daemon.engine.protocol import Answer, Ask, Done
from florence_daemon.errors import (
    CheckpointError,
    DatasetError,
    DiskFull,
    FlorenceError,
    PoorAnswer,
    SidecarError,
    UnreadablePicture,
)
from florence_daemon.folders.asking import answers_by_output, asks_of, asks_of_one
from florence_daemon.folders.atomic import open_regular
from florence_daemon.folders.contents import Said, content_of
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.names import is_utf8
from florence_daemon.folders.sidecars import sidecar_path
from florence_daemon.quality import flaw_of, other_asks, reasons_against, with_others
from florence_daemon.queue import Job, JobQueue, Kind
from florence_daemon.worker import reason_of

log = logging.getLogger(__name__)

# What ends a run, since no other picture will fare better.
ENDS_IT = (CheckpointError, DiskFull)


@dataclass(frozen=True)
class Outcome:
    """What became of a picture. error: why it has no caption. was_there: it had all it needs by the time of its turn.

    ends_it: the error is none of the picture's, and concerns all.
    """

    image: str
    results: dict[str, Any] | None = None
    error: str | None = None
    was_there: bool = False
    ends_it: bool = False


class Answering:
    """An engine, and the roads from a picture to what is written about it. Threads may share it."""

    def __init__(self, config: Config, trees: Sequence[Tree], parts: Parts | None, batch: int) -> None:
        """parts: where results go; None puts them beside the pictures. batch: pictures that it has at a time."""
        self._trees = trees
        self._parts = parts
        self._model = config.model
        self._ledger = Ledger()
        # What the driver gives is bounded already.
        self._works = Works(config, JobQueue(1_000_000), self._ledger)
        self._works.start()
        self._threads = ThreadPoolExecutor(batch, thread_name_prefix="picture")
        self._closing = threading.Lock()

    def close(self) -> None:
        """Give up what runs, and end the engine."""
        with self._closing:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._works.stop(at_once=True)

    def caption(self, errands: Sequence[Errand]) -> list[Outcome]:
        """Caption a batch; each picture ends with an outcome."""
        if self._parts is not None:
            return self._into_part(errands, self._parts)
        return list(self._threads.map(self._beside, errands))

    def _beside(self, errand: Errand) -> Outcome:
        try:
            return self._into_store(errand, errand.store) if errand.store is not None else self._into_folder(errand)
        except Exception as error:
            return _failed(errand, error)

    def _into_folder(self, errand: Errand) -> Outcome:
        """As a backfill of one machine does it, by the same parts."""
        image = errand.image
        if image.overwrite == "never" and all(
            not each.is_xmp and os.path.lexists(sidecar_path(image.path, each)) for each in image.outputs
        ):
            return Outcome(image.path, was_there=True)
        job = Job(Kind.BACKFILL, image.path, asks_of(image.outputs), image)
        self._works.queue.put(job)
        return _answered(errand, job.future.result())

    def _into_store(self, errand: Errand, number: int) -> Outcome:
        image, store = errand.image, self._store(number)
        path = store.path_of(image.path)
        directory, _, name = path.rpartition("/")
        places = {each: f"{directory}/{sidecar_path(name, each, lambda _: False)}" for each in image.outputs}
        before, *there = _look(store, [path, *places.values()])
        if image.overwrite == "never" and all(there):
            return Outcome(image.path, was_there=True)
        done = self._ask(read_from(store, path), asks_of(image.outputs))
        after, *there = _look(store, [path, *places.values()])
        if after != before:
            raise SidecarError("changed while it was captioned; nothing was written")
        is_there = dict(zip(places, map(bool, there), strict=True))
        for output, content in _contents(name, image.outputs, done):
            if image.overwrite != "never" or not is_there[output]:
                _write(store, places[output], content)
        _refuse_poor(done)
        return _answered(errand, done)

    def _into_part(self, errands: Sequence[Errand], parts: Parts) -> list[Outcome]:
        """Results of a batch make one file, named by its pictures: to do it again finds it there."""
        paths = [errand.image.path for errand in errands]
        try:
            there = parts.held(paths)
            left = [errand for errand in errands if errand.image.path not in there]
            answered = list(self._threads.map(self._record, left))
            records = [record for record, _ in answered if record is not None]
            if records:
                parts.write([errand.image.path for errand in left], records)
        except (OSError, DatasetError) as error:
            reason = str(error) if isinstance(error, DatasetError) else f"{parts.address}: {one_line(error)}"
            return [Outcome(paths[0], error=reason, ends_it=True)]
        return [Outcome(path, was_there=True) for path in paths if path in there] + [each for _, each in answered]

    def _record(self, errand: Errand) -> tuple[Record | None, Outcome]:
        image = errand.image
        try:
            if not is_utf8(image.path):
                raise SidecarError("its name is not UTF-8, which results in one place cannot hold; rename it")
            picture: str | bytes = image.path
            if errand.store is not None:
                store = self._store(errand.store)
                picture = read_from(store, store.path_of(image.path))
            elif self._parts is not None and self._parts.holds_pictures:
                picture = _read_file(image.path)
            done = self._ask(picture, asks_of(image.outputs))
            texts = {
                output.ending.removeprefix("."): content.decode().rstrip("\n")
                for output, content in _contents(image.path, image.outputs, done)
            }
            _refuse_poor(done)
        except Exception as error:
            return None, _failed(errand, error)
        content = picture if isinstance(picture, bytes) else None
        structured = frozenset(each.ending.removeprefix(".") for each in image.outputs if each.is_structured)
        return Record(image.path, texts, done.size_px, structured, content), _answered(errand, done)

    def _ask(self, picture: str | bytes, asks: tuple[Ask, ...]) -> Done:
        """The answers, those that are no caption after another try, as for a picture in a folder."""
        done = self._answer(picture, asks)
        others = other_asks(asks, done, self._model)
        return with_others(done, self._answer(picture, others)) if others else done

    def _answer(self, picture: str | bytes, asks: tuple[Ask, ...]) -> Done:
        job = Job(Kind.BACKFILL, picture, asks)
        self._works.queue.put(job)
        return job.future.result()

    def _store(self, number: int) -> Store:
        store = self._trees[number]
        if not isinstance(store, Store):
            raise TypeError(f"tree {number} is a folder")
        return store


def _contents(name: str, outputs: Sequence[OutputConfig], done: Done) -> list[tuple[OutputConfig, bytes]]:
    """What the sidecars are to hold, of the answers that are captions. Raises: PoorAnswer, nothing is left of one."""
    contents = []
    for output, answers in _fit(outputs, done):
        results = tuple(answer.result for answer in answers)
        said = Said(name.rpartition("/")[2], done.size_px, asks_of_one(output), results)
        content = content_of(output, said, None, "never")
        if content is not None:
            contents.append((output, content))
    return contents


def _fit(outputs: Sequence[OutputConfig], done: Done) -> list[tuple[OutputConfig, tuple[Answer, ...]]]:
    return [pair for pair in answers_by_output(outputs, done.answers) if not any(map(flaw_of, pair[1]))]


def _refuse_poor(done: Done) -> None:
    """Raises: PoorAnswer for answers that are no captions."""
    reasons = reasons_against(done)
    if reasons:
        raise PoorAnswer(reasons)


def _answered(errand: Errand, done: Done) -> Outcome:
    return Outcome(errand.image.path, {answer.prompt: answer.result for answer in done.answers})


def _failed(errand: Errand, error: Exception) -> Outcome:
    path = errand.image.path
    if not isinstance(error, FlorenceError):  # what a store's own library raises
        log.error("%s", path, exc_info=error)
        return Outcome(path, error=f"{type(error).__name__}: {one_line(error)}")
    return Outcome(path, error=reason_of(error, path), ends_it=isinstance(error, ENDS_IT))


def read_from(store: Store, path: str) -> bytes:
    """The bytes of a picture in a store. Raises: UnreadablePicture, PictureError."""
    try:
        return store.read(path)
    except OSError as error:
        raise UnreadablePicture(f"cannot be read: {one_line(error)}") from error


def _read_file(path: str) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise UnreadablePicture(f"cannot be read: {error.strerror}") from error


def _look(store: Store, paths: list[str]) -> list[tuple[Any, ...] | None]:
    """Size and date of each; None for what is not there."""
    try:
        found = store.files.get_file_info(paths)
    except OSError as error:
        raise UnreadablePicture(f"cannot be looked at: {one_line(error)}") from error
    return [(each.size, each.mtime_ns) if each.type.name == "File" else None for each in found]


def _write(store: Store, path: str, content: bytes) -> None:
    try:
        store.write(path, content)
    except OSError as error:
        raise SidecarError(f"{store.address(path)}: cannot be written: {one_line(error)}") from error
