"""Let contenders work in turn, round after round, and write down what each took."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.checkpoints import make_checkpoint
from benchmarks.contender import CAPTION, TAGS, Answered, Contender, Order, UnableError
from benchmarks.floor import Rates, count_work
from benchmarks.photographs import make_photographs
from benchmarks.progress import Progress, say
from benchmarks.results import Kind, Plan, Row, SizeResult
from florence_daemon.engine.checkpoint import open_checkpoint
from florence_daemon.engine.protocol import Ask

CALIBRATED = 4  # photographs that int8 is fitted to; a random network has no outliers that more would show
SETTLE_S = 2.0  # before a process that has nothing to do is looked at
CHECKED_PX = (1024, 768)  # too small for a JPEG to be read at a reduced scale, so that every contender sees the same


@dataclass(frozen=True)
class Pictures:
    """alone and backfill are a camera's; checked are small, to compare answers on."""

    alone: list[Path]
    backfill: list[Path]
    checked: list[Path]


def find_pictures(plan: Plan, cache: Path) -> Pictures:
    """Make the pictures, unless the cache has them."""
    camera = make_photographs(max(plan.pictures, plan.alone), cache / "photographs")
    checked = make_photographs(2, cache / "photographs", CHECKED_PX)
    return Pictures(camera[: plan.alone], camera[: plan.pictures], checked)


def measure_size(size: str, kinds: Mapping[str, Kind], plan: Plan, pictures: Pictures, cache: Path) -> SizeResult:
    """Measure all contenders on a size of the model."""
    say(f"{size}: the checkpoint")
    directory = make_checkpoint(size, cache)
    checkpoint = open_checkpoint(directory)
    prompt_tokens = len(checkpoint.encode_prompt(Ask(CAPTION))[1])
    work = count_work(checkpoint.layout, prompt_tokens, plan.new_tokens, checkpoint.search.num_beams)
    orders = {letter: _order(kind, directory, plan, cache) for letter, kind in kinds.items()}
    race = Race(
        plan, pictures, orders, {letter: Row(kind) for letter, kind in kinds.items()}, _progress(size, kinds, plan)
    )
    try:
        race.start()
        race.check()
        rates = [race.run_round(number) for number in range(plan.rounds)]
        race.look_at_memory()
    finally:
        race.close()
    return SizeResult(size, work, rates, race.rows)


class Race:
    """The contenders that are running, and what is known of them."""

    def __init__(
        self, plan: Plan, pictures: Pictures, orders: Mapping[str, Order], rows: dict[str, Row], progress: Progress
    ) -> None:
        self.rows = rows
        self._plan = plan
        self._pictures = pictures
        self._orders = orders
        self._progress = progress
        self._running: dict[str, Contender] = {}
        self._captions: dict[str, dict[Path, str]] = {}
        self._alone_captions: dict[str, dict[Path, str]] = {}

    def start(self) -> None:
        """Start each contender once to warm the disk and what it compiles, then once a round, to the first caption."""
        for turn in range(1 + self._plan.rounds):
            for letter in [letter for letter, row in self.rows.items() if row.unable is None]:
                self._progress.say(f"{letter} starts, {turn} of {self._plan.rounds}")
                try:
                    if turn == 0:
                        self._prepare(letter)
                    self._start(letter, is_measured=turn > 0)
                except UnableError as error:
                    self._give_up(letter, error)
                if turn < self._plan.rounds and letter in self._running:
                    self._running.pop(letter).close()

    def _prepare(self, letter: str) -> None:
        """See that what a contender needs is there. Raises: UnableError."""
        order = self._orders[letter]
        if order.engine != "openvino":
            return
        if find_spec("openvino") is None:
            raise UnableError("OpenVINO is not installed")
        if order.precision == "int8":
            samples = map(str, self._pictures.backfill[:CALIBRATED])
            command = [sys.executable, "-m", "benchmarks.calibration", order.checkpoint, order.state_dir, *samples]
            if subprocess.run(command, check=False).returncode != 0:
                raise UnableError("calibrating it failed")

    def _start(self, letter: str, is_measured: bool) -> None:
        began_s = time.perf_counter()
        contender = self._running[letter] = Contender(self._orders[letter])
        if is_measured:
            self.rows[letter].loaded = contender.memory()
            contender.answer(self._pictures.checked[:1])
            self.rows[letter].ready_s.append(contender.ready_s)
            self.rows[letter].first_s.append(time.perf_counter() - began_s)

    def _give_up(self, letter: str, error: UnableError) -> None:
        self._progress.is_out(letter)
        self._progress.say(f"{letter} CANNOT TAKE PART: {error}")
        if letter in self._running:
            self._running.pop(letter).close()
        self.rows[letter] = Row(self.rows[letter].kind, unable=str(error))

    def check(self) -> None:
        """Compare answers about the small pictures with the reference's."""
        found = {}
        for letter in list(self._running):
            self._progress.say(f"{letter} answers what is compared")
            try:
                both = self._running[letter].answer(self._pictures.checked, CAPTION, TAGS).answers
            except UnableError as error:
                self._give_up(letter, error)
                continue
            found[letter] = [answer for of_one in both for answer in of_one]
        for letter, answers in found.items():
            self._count(self.rows[letter], answers)
            self._compare_checked(letter, answers, found.get("a", []))

    def _compare_checked(self, letter: str, answers: list[str], wanted: list[str]) -> None:
        row = self.rows[letter]
        row.checked = len(wanted)
        row.same = sum(one == other for one, other in zip(answers, wanted, strict=False))
        if row.same < row.checked and row.kind.precision == "float32":
            self._progress.say(
                f"{letter} WRITES OTHER TOKENS THAN a in {row.checked - row.same} of {row.checked} answers"
            )

    def _count(self, row: Row, answers: list[str]) -> None:
        """Count the answers that are not of full length: words, and the two tokens that frame them."""
        short = [answer for answer in answers if len(answer.split()) + 2 != self._plan.new_tokens]
        row.short += len(short)
        for answer in short[:1]:
            self._progress.say(f"{row.kind.title} GAVE NOT {self._plan.new_tokens} TOKENS: {answer!r}")

    def run_round(self, number: int) -> Rates:
        """Let each contender do everything once; the next round begins with another."""
        name = f"round {number + 1} of {self._plan.rounds}"
        self._progress.say(f"{name}: the machine alone")
        rates = _measure_rates(self._plan.device, next(iter(self.rows.values())).kind.precision)
        letters = list(self.rows)
        letters = letters[number % len(letters) :] + letters[: number % len(letters)]
        for what in (self._alone, self._both, self._backfill):
            for letter in [letter for letter in letters if letter in self._running]:
                self._progress.say(f"{name}: {letter}, {what.__name__.strip('_')}")
                try:
                    what(letter)
                except UnableError as error:
                    self._give_up(letter, error)
        return rates

    def _alone(self, letter: str) -> None:
        row, count = self.rows[letter], len(self._pictures.alone)
        found = self._answer(letter, self._pictures.alone, CAPTION)
        row.alone_s.append(found.took_s / count)
        if found.vision_s is not None and found.text_s is not None:
            row.vision_s.append(found.vision_s / count)
            row.text_s.append(found.text_s / count)
        self._alone_captions[letter] = dict(zip(self._pictures.alone, _captions(found), strict=True))

    def _both(self, letter: str) -> None:
        found = self._answer(letter, self._pictures.alone, CAPTION, TAGS)
        self.rows[letter].both_s.append(found.took_s / len(self._pictures.alone))

    def _backfill(self, letter: str) -> None:
        pictures = self._pictures.backfill
        if self.rows[letter].kind.engine == "reference":
            pictures = pictures[: self._plan.reference_pictures]
        found = self._answer(letter, pictures, CAPTION, is_backfill=True)
        self.rows[letter].per_s.append(len(pictures) / found.took_s)
        self._compare(letter, dict(zip(pictures, _captions(found), strict=True)))

    def _answer(self, letter: str, pictures: list[Path], *prompts: str, is_backfill: bool = False) -> Answered:
        found = self._running[letter].answer(pictures, *prompts, is_backfill=is_backfill)
        self._progress.took(letter, len(pictures) * len(prompts), found.took_s)
        return found

    def _compare(self, letter: str, captions: dict[Path, str]) -> None:
        row = self.rows[letter]
        self._count(row, list(captions.values()))
        self._captions[letter] = captions
        row.backfilled, row.backfilled_same = _count_same(captions, self._captions.get("a", {}))
        row.grouped, row.grouped_same = _count_same(captions, self._alone_captions.get(letter, {}))
        if row.grouped_same < row.grouped and row.kind.precision == "float32":
            wrong = row.grouped - row.grouped_same
            self._progress.say(
                f"{letter} WRITES OTHER TOKENS IN A BACKFILL THAN ALONE in {wrong} of {row.grouped} answers"
            )

    def look_at_memory(self) -> None:
        """What each process holds with nothing to do, and the most it ever held."""
        time.sleep(SETTLE_S)
        for letter, contender in self._running.items():
            self.rows[letter].idle = contender.memory()

    def close(self) -> None:
        """End all processes."""
        for contender in self._running.values():
            contender.close()


def _progress(size: str, kinds: Mapping[str, Kind], plan: Plan) -> Progress:
    done = {
        letter: plan.reference_pictures if kind.engine == "reference" else plan.pictures
        for letter, kind in kinds.items()
    }
    return Progress(size, {letter: plan.rounds * (3 * plan.alone + count) for letter, count in done.items()})


def _count_same(captions: Mapping[Path, str], others: Mapping[Path, str]) -> tuple[int, int]:
    """How many pictures both have, and of how many they say the same."""
    both = [picture for picture in captions if picture in others]
    return len(both), sum(captions[picture] == others[picture] for picture in both)


def _captions(found: Answered) -> Iterator[str]:
    return (answers[0] for answers in found.answers)


def _order(kind: Kind, checkpoint: Path, plan: Plan, cache: Path) -> Order:
    return Order(
        engine=kind.engine,
        precision=kind.precision,
        device=plan.device,
        checkpoint=str(checkpoint),
        state_dir=str(cache / "state"),
        new_tokens=plan.new_tokens,
        batch=plan.batch,
    )


def _measure_rates(device: str, precision: str) -> Rates:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.floor", device, precision], stdout=subprocess.PIPE, check=True, text=True
    )
    return Rates(**json.loads(found.stdout))
