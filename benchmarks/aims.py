"""What the engine is to reach, beside what a run saw."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import Result, SizeResult, usual


@dataclass(frozen=True)
class Aim:
    """An aim and what was seen of it; seen None: not measured in this run. at_least: else it is an upper bound."""

    what: str
    wanted: float
    seen: float | None
    unit: str
    at_least: bool

    @property
    def is_met(self) -> bool | None:
        if self.seen is None:
            return None
        return self.seen >= self.wanted if self.at_least else self.seen <= self.wanted

    @property
    def verdict(self) -> str:
        """In words: met, missed by how much, or not measured."""
        if self.seen is None:
            return "not measured"
        if self.is_met:
            return "met"
        short = self.wanted / self.seen if self.at_least else self.seen / self.wanted
        return f"**missed** by a factor of {short:.2f}"


def find_aims(result: Result) -> list[Aim]:
    """List the aims that concern the device of a run."""
    sizes = {found.size: found for found in result.sizes}
    base, large = sizes.get("base"), sizes.get("large")
    if result.plan.device.startswith("cuda"):
        return [*_ratios(base, "b", "ours, torch", 20, 4)]
    best = "d" if base is not None and base.rows.get("d") and base.rows["d"].ready_s else "c"
    return [
        *_ratios(base, "b", "torch, float32", 2.5, 1.8),
        *_ratios(base, "c", "OpenVINO, float32", 2.5, 1.8),
        *_ratios(base, "d", "OpenVINO, int8", 5, 3.5),
        *(
            Aim(f"base, {letter}: caption and tags beside a caption alone", 1.25, _second(base, letter), "×", False)
            for letter in ("b", "c", "d")
        ),
        Aim("base, d: peak memory of the process", 1.0, _peak_gb(base, "d"), "GB", False),
        Aim("large, d: peak memory of the process", 2.4, _peak_gb(large, "d"), "GB", False),
        *(
            Aim(f"base, {letter}: from the process's start to the model ready", 3.0, _ready(base, letter), "s", False)
            for letter in dict.fromkeys(("b", best))
        ),
    ]


def _ratios(found: SizeResult | None, letter: str, title: str, backfill: float, alone: float) -> list[Aim]:
    backfilled = found.faster_backfill(letter) if found else None
    answered = found.faster_alone(letter) if found else None
    return [
        Aim(f"base, {title}: backfill beside (a)", backfill, backfilled, "×", True),
        Aim(f"base, {title}: one picture alone beside (a)", alone, answered, "×", True),
    ]


def _second(found: SizeResult | None, letter: str) -> float | None:
    return found.rows[letter].second_prompt if found and letter in found.rows else None


def _ready(found: SizeResult | None, letter: str) -> float | None:
    return usual(found.rows[letter].ready_s) if found and letter in found.rows else None


def _peak_gb(found: SizeResult | None, letter: str) -> float | None:
    idle = found.rows[letter].idle if found and letter in found.rows else None
    return idle.peak_mb * 2**20 / 1e9 if idle else None
