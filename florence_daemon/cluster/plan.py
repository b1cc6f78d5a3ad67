"""What every engine of the cluster is told once, and the batches that it is given then."""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from florence_daemon import __version__
from florence_daemon.cluster.addresses import Folder, Tree, one_line
from florence_daemon.cluster.answering import Answering, Outcome
from florence_daemon.cluster.due import Errand
from florence_daemon.cluster.parts import Parts
from florence_daemon.config import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """config: as the driver has it, but for the device. trees: where the pictures are. parts: where the results go.

    batch: pictures that an engine has at a time. version: of this program; all machines must have the same.
    """

    config: Config
    trees: tuple[Tree, ...]
    parts: Parts | None
    batch: int
    version: str = __version__


def pack(errands: Sequence[Errand]) -> bytes:
    """A batch, to be sent."""
    return pickle.dumps(tuple(errands), protocol=pickle.HIGHEST_PROTOCOL)


def unpack_outcomes(text: str) -> list[Outcome]:
    """What became of a batch, as a captioner sent it."""
    return [Outcome(**each) for each in json.loads(text)]


class Captioner:
    """What Ray Data makes in each place of its pool: an engine, which takes a batch and gives what became of it."""

    def __init__(self, plan: Plan) -> None:
        self._problem = problem_here(plan)
        self._answering = Answering(plan.config, plan.trees, plan.parts, plan.batch)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Caption batches of errands: `number` and `errands` of each give its `number`, `outcomes`, and `seconds`."""
        began_s = time.monotonic()
        outcomes = [self._caption(parcel) for parcel in batch["errands"]]
        return {
            "number": batch["number"],
            "outcomes": [json.dumps([asdict(one) for one in each]) for each in outcomes],
            "seconds": [time.monotonic() - began_s] * len(outcomes),
        }

    def _caption(self, parcel: bytes) -> list[Outcome]:
        errands: tuple[Errand, ...] = pickle.loads(parcel)  # noqa: S301 - the driver of this very job packed it
        if self._problem is not None:
            return [Outcome(errands[0].image.path, error=self._problem, ends_it=True)]
        try:
            return self._answering.caption(errands)
        except Exception as error:  # else Ray drops the batch, and says nothing of why
            log.exception("%s and those with it", errands[0].image.path)
            reason = f"{socket.gethostname()}: {type(error).__name__}: {one_line(error)}"
            return [Outcome(errands[0].image.path, error=reason, ends_it=True)]

    def __del__(self) -> None:
        if hasattr(self, "_answering"):
            self._answering.close()


def problem_here(plan: Plan) -> str | None:
    """Why this machine cannot take part; None when it can."""
    machine = socket.gethostname()
    if plan.version != __version__:
        return f"{machine} has florence-daemon {__version__}, and the command {plan.version}; install the same on all"
    for tree in plan.trees:
        if isinstance(tree, Folder) and not os.path.lexists(tree.path):
            return f"{machine} does not see {tree.path}; mount it there under the same path, or give an address"
    return None
