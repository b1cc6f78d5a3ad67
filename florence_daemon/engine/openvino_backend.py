"""Runs Florence-2 in OpenVINO on a CPU, from the form that `openvino_export` made; this needs no torch."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.openvino_decoder import OpenVinoDecoder
from florence_daemon.engine.openvino_form import EMBEDDING, PARTS, Form, find_form, float32_directory, int8_directory
from florence_daemon.engine.openvino_run import let_go, load_part
from florence_daemon.engine.protocol import EngineSettings
from florence_daemon.engine.sharing import alone_at, own_threads
from florence_daemon.errors import CheckpointError, EngineError

log = logging.getLogger(__name__)


class OpenVinoBackend:
    """Our network as OpenVINO runs it."""

    device = "cpu"
    picture_batch = 1

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings, precision: str) -> None:
        """Load the form in this precision, `float32` or `int8`; the float32 form is made when it is not there.

        Raises:
            CheckpointError: the checkpoint's weights are wrong.
            EngineError: there is no int8 form yet, or the form cannot be made or kept.
        """
        self.precision = precision
        self._threads = own_threads(settings.parts)
        state_dir = Path(_temporary_for(self) if settings.state_dir is None else settings.state_dir)
        form = _find_int8(state_dir, checkpoint) if precision == "int8" else _find_float32(state_dir, checkpoint)
        try:
            self._open(form)
        except RuntimeError as error:
            if precision == "int8":
                raise EngineError(f"OpenVINO cannot run what is in {form.directory}: {error}") from error
            log.warning("what was compiled in %s does not run here; it is made anew", form.directory)
            with _alone_at(form.directory):
                self._open(_make_float32(form.directory, checkpoint))

    def see(self, pixels: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Run the vision part: (B, 3, S, S) to B features (1, I, D). One picture keeps all cores busy."""
        features = [self._see.infer([picture[None]])[0] for picture in pixels]
        # Some weights are read from the file again at each run: 72 MB of base in int8.
        let_go(self._parts["see"].mapped)
        return features

    def new_decoder(self) -> OpenVinoDecoder:
        """Begin with no questions."""
        return OpenVinoDecoder(
            self._form, self._embedding, self._read, self._parts["write"].network.create_infer_request()
        )

    def question_bytes(self, beams: int, tokens: int) -> int:
        """Keys and values of all layers: of picture and prompt once, of what is written for each beam."""
        form = self._form
        return 2 * 4 * form.layers * form.heads * form.head_width * (form.image_tokens + 32 + beams * tokens)

    def _open(self, form: Form) -> None:
        self._form = form
        self._embedding: NDArray[np.float32] = np.load(form.directory / EMBEDDING, mmap_mode="r")
        self._parts = {part: load_part(form, part, self._threads) for part in PARTS}
        self._see, self._read = (self._parts[part].network.create_infer_request() for part in ("see", "read"))
        self._lay_out_weights(form)

    def _lay_out_weights(self, form: Form) -> None:
        """Run the text part once: its first run makes OpenVINO's copies of the weights, and the file is let go of."""
        decoder = self.new_decoder()
        decoder.join(np.zeros((1, form.image_tokens, self._embedding.shape[1]), np.float32), [0], beams=1)
        decoder.step([0], [0])
        for part in self._parts.values():
            let_go(part.mapped)


def _temporary_for(owner: object) -> str:
    """Make a directory that goes when its owner does."""
    directory = tempfile.mkdtemp(prefix="florence-daemon-")
    weakref.finalize(owner, shutil.rmtree, directory, ignore_errors=True)
    return directory


def _find_int8(state_dir: Path, checkpoint: Checkpoint) -> Form:
    form = find_form(int8_directory(state_dir, checkpoint))
    if form is None:
        raise EngineError(
            f"There is no int8 form of {checkpoint.directory} for pictures of {checkpoint.layout.image_side_px} pixels "
            "yet; make it with `florence-daemon quantize --calibrate DIR`, where DIR holds pictures of yours"
        )
    return form


def _find_float32(state_dir: Path, checkpoint: Checkpoint) -> Form:
    directory = float32_directory(state_dir, checkpoint)
    form = find_form(directory)
    if form is not None:
        return form
    with _alone_at(directory):  # Several engines that start together find nothing, and one makes it.
        return find_form(directory) or _make_float32(directory, checkpoint)


@contextmanager
def _alone_at(directory: Path) -> Iterator[None]:
    try:
        with alone_at(directory.with_name(f"{directory.name}.lock")):
            yield
    except OSError as error:
        raise EngineError(f"The compiled model cannot be kept in {directory}: {error}") from error


def _make_float32(directory: Path, checkpoint: Checkpoint) -> Form:
    """Export and compile in a process of its own, so that torch and the second copy of the weights go with it."""
    log.warning("compiling the model for this machine, once; kept in %s", directory)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(_export, checkpoint, directory).result()
        except CheckpointError:
            raise
        except BrokenProcessPool as error:
            raise EngineError(
                "The model could not be compiled: the process that does it died. Enough memory?"
            ) from error
        except OSError as error:
            raise EngineError(f"The compiled model cannot be kept in {directory}: {error}") from error
    form = find_form(directory)
    if form is None:
        raise EngineError(f"The compiled model was not kept in {directory}; is the disk full?")
    return form


def _export(checkpoint: Checkpoint, directory: Path) -> None:
    from florence_daemon.engine.openvino_export import export

    export(checkpoint, directory)
