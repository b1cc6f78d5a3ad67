"""How the watching of a folder is doing, and how all folders are together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "degraded", "failed"]


@dataclass(frozen=True)
class Health:
    """state: `ok`; `degraded` when pictures are found late, or some are not; `failed` when none are. reason: why."""

    state: State
    reason: str = ""


OK = Health("ok")


def worst(found: Iterable[Health]) -> Health:
    """The first of the worst."""
    order: tuple[State, ...] = ("failed", "degraded", "ok")
    return min(found, key=lambda health: order.index(health.state), default=OK)


def overall(by_path: Iterable[tuple[str, Health]]) -> Health:
    """All folders together: failed only when every one is, since the others go on."""
    folders = list(by_path)
    ill = [(path, health) for path, health in folders if health.state != "ok"]
    if not ill:
        return OK
    failed = all(health.state == "failed" for _, health in folders)
    return Health("failed" if failed else "degraded", "; ".join(f"{path}: {health.reason}" for path, health in ill))
