"""What is written anew, and what never is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from florence_daemon.config import ModelConfig
from florence_daemon.config_output import RULES, OutputConfig
from florence_daemon.folders.atomic import content_of
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Needs, leaves_existing, owner_of
from florence_daemon.folders.records import Making, Written, digest_of, making_of, shape_of
from florence_daemon.folders.settle import stamp_of

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
TEXT = "what this program wrote\n"


class Captioned:
    """A picture that this program captioned as its configuration said then; `model` and `output` are today's."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "a.jpg"
        self.sidecar = directory / "a.txt"
        self.image.write_bytes(b"picture")
        self.sidecar.write_text(TEXT)
        self.model = ModelConfig(name="demo")
        self.output = CAPTION
        self.ledger = Ledger()
        self.note()

    def note(self) -> None:
        stamp = stamp_of(str(self.image))
        assert stamp is not None
        making = making_of(self.model, self.output)
        written = Written(
            ".txt", digest_of(TEXT.encode()), stamp.size_bytes, stamp.mtime_ns, content_of(str(self.image)), making
        )
        self.ledger.claim([(str(self.image), stamp)])
        self.ledger.writing(str(self.image), [written])
        self.ledger.written(str(self.image), [written])

    def makes(self, output: OutputConfig) -> Making:
        return making_of(self.model, output)

    def is_due(self, overwrite: str) -> bool:
        entry = self.ledger.entry(str(self.image))
        needs = Needs(self.ledger, self.makes)
        return bool(needs.due(str(self.image), [self.output], overwrite, entry))


@pytest.fixture
def captioned(tmp_path: Path) -> Iterator[Captioned]:
    captioned = Captioned(tmp_path)
    yield captioned
    captioned.ledger.close()


def change_nothing(captioned: Captioned) -> None:
    pass


def touch_picture(captioned: Captioned) -> None:
    os.utime(captioned.image, (1, 1))


def change_picture(captioned: Captioned) -> None:
    captioned.image.write_bytes(b"another picture")


def change_picture_but_not_its_size(captioned: Captioned) -> None:
    captioned.image.write_bytes(b"PICTURE")
    os.utime(captioned.image, (1, 1))


def change_model(captioned: Captioned) -> None:
    captioned.model = ModelConfig(name="another")


def change_revision(captioned: Captioned) -> None:
    captioned.model = attrs.evolve(captioned.model, revision="abc")


def change_prompt(captioned: Captioned) -> None:
    captioned.output = OutputConfig(prompt="DETAILED_CAPTION", ext="txt")


def spell_prompt_otherwise(captioned: Captioned) -> None:
    captioned.output = OutputConfig(prompt="<CAPTION>", ext="txt")


def change_setting_that_shapes_the_text(captioned: Captioned) -> None:
    captioned.model = attrs.evolve(captioned.model, num_beams=1)


def change_setting_that_does_not(captioned: Captioned) -> None:
    captioned.model = attrs.evolve(captioned.model, idle_unload_s=1, device="cpu", max_batch=1, engine="torch")


def change_option_that_shapes_the_text(captioned: Captioned) -> None:
    captioned.output = attrs.evolve(CAPTION, prefix="ohwx, ")


def set_beams_for_this_output(captioned: Captioned) -> None:
    captioned.output = attrs.evolve(CAPTION, num_beams=1)


def edit_sidecar(captioned: Captioned) -> None:
    captioned.sidecar.write_text("what a person wrote\n")


def edit_sidecar_and_change_model(captioned: Captioned) -> None:
    edit_sidecar(captioned)
    change_model(captioned)


def remove_sidecar(captioned: Captioned) -> None:
    captioned.sidecar.unlink()


def lose_ledger(captioned: Captioned) -> None:
    captioned.ledger.forget(str(captioned.image))


@pytest.mark.parametrize(
    ("what", "due"),
    [
        (change_nothing, ()),
        (touch_picture, ()),
        (change_picture, ("stale", "always")),
        (change_picture_but_not_its_size, ("stale", "always")),
        (change_model, ("stale", "always")),
        (change_revision, ("stale", "always")),
        (change_prompt, ("stale", "append", "prepend", "always")),
        (spell_prompt_otherwise, ()),
        (change_setting_that_shapes_the_text, ("stale", "always")),
        (change_option_that_shapes_the_text, ("stale", "always")),
        (set_beams_for_this_output, ("stale", "always")),
        (change_setting_that_does_not, ()),
        (edit_sidecar, ()),
        (edit_sidecar_and_change_model, ("always",)),
        (lose_ledger, ("append", "prepend", "always")),
        (remove_sidecar, RULES),
    ],
)
def test_sidecar_is_written_anew_only_by_the_rule(
    captioned: Captioned, what: Callable[[Captioned], None], due: tuple[str, ...]
) -> None:
    what(captioned)
    assert tuple(rule for rule in RULES if captioned.is_due(rule)) == due


@pytest.mark.parametrize(("own", "is_due"), [(None, False), ("never", False), ("stale", True), ("always", True)])
def test_rule_of_an_output_goes_before_the_folders(captioned: Captioned, own: str | None, is_due: bool) -> None:
    change_model(captioned)
    captioned.output = attrs.evolve(captioned.output, overwrite=own)
    assert captioned.is_due("never") is is_due
    assert leaves_existing([captioned.output], "never") is not is_due


def test_options_that_are_the_defaults_leave_old_notes_valid() -> None:
    """Else every option that is added to the program would make all sidecars anew where `stale` is the rule."""
    assert "+" not in making_of(ModelConfig(), CAPTION).settings
    assert making_of(ModelConfig(), attrs.evolve(CAPTION, overwrite="stale", ext="cap")) == making_of(
        ModelConfig(), CAPTION
    )
    assert making_of(ModelConfig(num_beams=5), attrs.evolve(CAPTION, num_beams=1)) == making_of(
        ModelConfig(num_beams=3), attrs.evolve(CAPTION, num_beams=1)
    )


def test_nothing_is_added_while_a_ledger_that_failed_cannot_know_what_was(captioned: Captioned) -> None:
    (captioned.image.parent / "file").touch()
    captioned.ledger.close()
    captioned.ledger = Ledger(captioned.image.parent / "file")
    assert not captioned.is_due("append")


def test_always_spares_what_a_ledger_that_failed_cannot_know(captioned: Captioned) -> None:
    """Else one hour with a full state disk would cost every line that was edited in years."""
    (captioned.image.parent / "file").touch()
    captioned.ledger.close()
    captioned.ledger = Ledger(captioned.image.parent / "file")
    assert captioned.ledger.health is not None
    assert not captioned.is_due("always")
    captioned.sidecar.unlink()
    assert captioned.is_due("always")


def test_settings_that_are_unknown_count_as_the_same(captioned: Captioned) -> None:
    theirs = Making("demo", "<CAPTION>", "")
    assert theirs.is_same(captioned.makes(CAPTION))
    assert captioned.makes(CAPTION).is_same(theirs)
    shaped = attrs.evolve(CAPTION, prefix="ohwx, ")
    assert not theirs.is_same(captioned.makes(shaped)), "the options are known wherever the model is"
    assert Making("demo", "<CAPTION>", shape_of(shaped)).is_same(captioned.makes(shaped))
    assert not theirs.is_same(another_model("another"))


def another_model(name: str) -> Making:
    return making_of(ModelConfig(name=name), CAPTION)


def test_picture_that_was_only_touched_is_read_once(captioned: Captioned) -> None:
    touch_picture(captioned)
    assert not captioned.is_due("stale")
    captioned.image.write_bytes(b"PICTURE")
    os.utime(captioned.image, (1, 1))
    assert not captioned.is_due("stale"), "the same size and time: it is not read again"


def test_sidecar_that_was_being_replaced_when_the_process_died_is_ours_either_way(captioned: Captioned) -> None:
    change_model(captioned)
    stamp = stamp_of(str(captioned.image))
    assert stamp is not None
    new = Written(".txt", digest_of(b"new\n"), stamp.size_bytes, stamp.mtime_ns, None, captioned.makes(CAPTION))
    captioned.ledger.writing(str(captioned.image), [new])
    assert captioned.is_due("stale"), "the old text is still there"
    captioned.sidecar.write_text("new\n")
    assert not captioned.is_due("stale"), "the new text came to be there"


def test_shared_sidecar_belongs_to_whom_it_was_written_for_else_to_the_first_by_name(captioned: Captioned) -> None:
    entry = captioned.ledger.entry(str(captioned.image))
    assert owner_of(["a.png", "a.jpg", "a.webp"], lambda name: entry if name == "a.webp" else None) == "a.webp"
    assert owner_of(["a.png", "a.jpg"], lambda name: None) == "a.jpg"
