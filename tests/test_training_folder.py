"""A trainer's folder as its owner sets it up: one line in one file, from several prompts, whichever way it comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import RunningDaemon, run_command, wait_for
from tests.pictures import CAPTION, DETAILED, TAGS, jpeg

OPTIONS = """
        template: "{prefix}{caption} {tags}"
        prefix: "ohwx style, "
        strip: [the image shows]
        replace_tags: {red circle: scarlet disc}
        num_beams: 1
"""
WORDS = (
    "--template", "{prefix}{caption} {tags}", "--prefix", "ohwx style, ", "--set", "strip=[the image shows]",
    "--set", "replace_tags={red circle: scarlet disc}", "--set", "num_beams=1",
)  # fmt: skip


def test_watched_folder_and_backfill_through_a_server_give_the_same_line(
    start_daemon: Callable[..., RunningDaemon], tmp_path: Path
) -> None:
    watched, other = tmp_path / "watched", tmp_path / "other"
    for folder in (watched, other):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(jpeg())
    (watched / "a.caption").write_text("mine\n")
    config = f"""
model: {{name: demo}}
folders:
  - path: {watched}
    settle_s: 0.3
    outputs:
      - prompts: [MORE_DETAILED_CAPTION, GENERATE_TAGS]
        ext: txt{OPTIONS}
      - {{prompt: CAPTION, ext: caption, overwrite: append, max_new_tokens: 64}}
"""
    daemon = start_daemon(config=config)
    wait_for(lambda: (watched / "a.txt").exists() and (watched / "a.caption").read_text() != "mine\n", 120)
    line = (watched / "a.txt").read_text()
    assert DETAILED.startswith("The image shows ")
    tags = TAGS.replace("red circle", "scarlet disc")
    assert line == f"ohwx style, {DETAILED.removeprefix('The image shows ')} {tags}\n"
    assert (watched / "a.caption").read_text() == f"mine, {CAPTION}\n"
    result = run_command("backfill", str(other), "--server", daemon.url, *WORDS, home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (other / "a.txt").read_text() == line
    again = run_command("backfill", str(other), "--server", daemon.url, *WORDS, "--overwrite", "stale", home=tmp_path)
    assert "nothing to do" in again.stderr
    changed = ("--overwrite", "stale", "--set", "case=lower")
    result = run_command("backfill", str(other), "--server", daemon.url, *WORDS, *changed, home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (other / "a.txt").read_text() == "ohwx style, " + line.removeprefix("ohwx style, ").lower()
