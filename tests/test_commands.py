"""The commands as a user calls them: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from florence_daemon import __version__
from tests.conftest import RunningDaemon, clean_environment, run_command, wait_for
from tests.pictures import CAPTION, DETAILED, SIZE_PX, TAGS, jpeg, rotated_jpeg, write_many


def make_tree(root: Path) -> Path:
    for name in ("a.jpg", "sub/b.jpg", "sub/deep/c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg())
    (root / "sub" / "bad.png").write_bytes(b"nothing like a picture")
    return root


def test_backfill_captions_a_tree_and_lists_what_it_could_not(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    first = run_command("backfill", str(root), "--model", "demo", home=tmp_path)
    assert first.returncode == 1, first.stderr
    assert f"{root / 'sub' / 'bad.png'}: is not a picture that can be read" in first.stderr
    assert "4 of 4 images" in first.stderr
    assert "1 failed" in first.stderr
    texts = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.t*"))
    assert texts == [f"{name}.{ext}" for name in ("a", "sub/b", "sub/deep/c") for ext in ("tag", "txt")]
    assert {path.read_text() for path in root.rglob("*.txt")} == {DETAILED + "\n"}
    second = run_command("backfill", str(root), "--model", "demo", "--dry-run", home=tmp_path)
    assert second.returncode == 0
    bad = root / "sub" / "bad"
    assert second.stdout == f"{bad}.png -> {bad}.txt, {bad}.tag\n"


def test_backfill_with_nothing_to_do_loads_no_model(tmp_path: Path) -> None:
    result = run_command("backfill", str(tmp_path), "--model", "no/such", home=tmp_path)
    assert (result.returncode, result.stderr) == (0, "nothing to do: every picture has its sidecars\n")


def test_backfill_takes_prompts_and_endings_and_prints_json(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "a.cap").write_text("an old one")
    arguments = ("--prompt", "caption", "--ext", "cap", "--prompt", "OD", "--ext", "json", "--overwrite", "always")
    result = run_command("backfill", str(tmp_path / "a.jpg"), "--model", "demo", "--json", *arguments, home=tmp_path)
    assert result.returncode == 0, result.stderr
    line = json.loads(result.stdout)
    assert line["image"] == str(tmp_path / "a.jpg")
    assert line["results"]["<CAPTION>"] == CAPTION
    assert (tmp_path / "a.cap").read_text() == CAPTION + "\n"
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "image": "a.jpg",
        "width": SIZE_PX[0],
        "height": SIZE_PX[1],
        "results": [{"prompt": "<OD>", "result": line["results"]["<OD>"]}],
    }


def test_backfill_through_a_server_writes_the_sidecars_here(
    start_daemon: Callable[..., RunningDaemon], tmp_path: Path
) -> None:
    root = make_tree(tmp_path / "tree")
    daemon = start_daemon()
    (root / "sub" / "b.jpg").write_bytes(rotated_jpeg())
    result = run_command("backfill", str(root), "--server", daemon.url, home=tmp_path)
    assert result.returncode == 1
    assert "bad.png: " in result.stderr
    assert {path.read_text() for path in root.rglob("*.txt")} == {DETAILED + "\n"}
    assert {path.read_text() for path in root.rglob("*.tag")} == {TAGS + "\n"}
    run_command("backfill", str(root), "--server", daemon.url, "--prompt", "OD", "--ext", "json", home=tmp_path)
    sizes = {(said["width"], said["height"]) for said in map(json.loads, map(Path.read_text, root.rglob("*.json")))}
    assert sizes == {SIZE_PX}


def test_interrupted_backfill_leaves_everything_whole_and_is_taken_up(tmp_path: Path) -> None:
    pictures = write_many(tmp_path, 120)
    with subprocess.Popen(
        [sys.executable, "-m", "florence_daemon", "backfill", str(tmp_path), "--model", "demo"],
        env=clean_environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    ) as backfill:
        wait_for(lambda: len(list(tmp_path.glob("*.txt"))) >= 3, 180)
        backfill.send_signal(signal.SIGINT)
        _, errors = backfill.communicate(timeout=120)
    assert backfill.returncode == 130, errors
    assert errors.count("finishing what runs; once more stops at once") == 1
    assert "interrupted; the same command takes up there" in errors
    done = {path.stem for path in tmp_path.glob("*.txt")}
    assert 3 <= len(done) < len(pictures)
    assert done == {path.stem for path in tmp_path.glob("*.tag")}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    again = run_command("backfill", str(tmp_path), "--model", "demo", home=tmp_path)
    assert again.returncode == 0
    assert f"of {len(pictures) - len(done)} images" in again.stderr
    assert all(path.with_suffix(".txt").read_text() == DETAILED + "\n" for path in pictures)


def test_backfill_without_its_model_says_so_and_ends(tmp_path: Path) -> None:
    write_many(tmp_path, 20)
    result = run_command("backfill", str(tmp_path), "--model", "no/such", home=tmp_path)
    assert result.returncode == 1
    assert "no/such" in result.stderr
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["backfill", "nowhere"], 1, "nowhere: there is no such file or folder"),
        (["backfill", ".", "--prompt", "CAPTION"], 2, "each --prompt NAME needs one --ext EXT"),
        (["backfill", ".", "--prompt", "NOPE", "--ext", "txt"], 2, "Invalid prompt"),
        (["backfill", ".", "--set", "max_tag=3"], 2, "--set max_tag: unknown setting; did you mean max_tags?"),
        (["backfill", ".", "--template", "{prefix}"], 2, "has no {caption} and no {tags}"),
        (["backfill", ".", "--model", "demo", "--server", "http://x"], 2, "--model and --server do not go together"),
        (["backfill", ".", "--server", "http://127.0.0.1:9"], 1, "no Florence Daemon answers there"),
        (["caption", "a.jpg", "--prompt", "NOPE", "--model", "demo"], 1, "Invalid prompt"),
        (["caption"], 2, "IMAGE"),
        (["run", "--port", "99999"], 2, "--port: 99999 is out of range"),
        (["run", "--config", "none.yaml"], 78, "there is no such configuration file"),
        (["status", "--server", "http://127.0.0.1:9"], 1, "no Florence Daemon answers there"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_use_is_explained(tmp_path: Path, arguments: list[str], code: int, expected: str) -> None:
    write_many(tmp_path, 1)
    result = run_command(*arguments, home=tmp_path)
    assert (result.returncode, expected in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_configuration_ends_with_78_and_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model:\n  nmae: demo\n")
    for command in (("check-config", "c.yaml"), ("run", "--config", "c.yaml")):
        result = run_command(*command, home=tmp_path)
        assert result.returncode == 78
        assert "c.yaml:2: model.nmae: unknown setting; did you mean name?" in result.stderr


def test_check_config_says_what_a_configuration_comes_to(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("folders: [{path: in}]\n")
    result = run_command("check-config", "c.yaml", home=tmp_path)
    assert result.returncode == 0
    assert "c.yaml: ok" in result.stdout
    assert "MORE_DETAILED_CAPTION to .txt, GENERATE_TAGS to .tag (not there yet)" in result.stdout


def test_caption_prints_the_answer_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    result = run_command("caption", "a.jpg", "--prompt", "caption", "--model", "demo", home=tmp_path)
    assert (result.returncode, result.stdout) == (0, CAPTION + "\n")
    assert os.listdir(tmp_path) == ["a.jpg"]


def test_caption_prints_json_lines_and_goes_on_after_a_bad_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(b"bad")
    arguments = ("--prompt", "GENERATE_TAGS", "--model", "demo", "--json", "--num-beams", "1")
    result = run_command("caption", "b.jpg", "a.jpg", *arguments, home=tmp_path)
    bad, good = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 1
    assert set(bad) == {"image", "task", "error"}
    assert good == {"image": "a.jpg", "task": "<GENERATE_TAGS>", "result": TAGS}


def test_commands_ask_a_running_daemon(start_daemon: Callable[..., RunningDaemon], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    url = start_daemon().url
    assert run_command("model", "--server", url, home=tmp_path).stdout == "demo\n"
    assert run_command("prompts", "--server", url, home=tmp_path).stdout.startswith("<GENERATE_TAGS>\n<CAPTION>\n")
    answer = run_command("caption", "a.jpg", "--prompt", "CAPTION", "--server", url, "--json", home=tmp_path)
    assert json.loads(answer.stdout) == {"image": "a.jpg", "task": "<CAPTION>", "result": CAPTION}
    status = json.loads(run_command("status", "--json", "--server", url, home=tmp_path).stdout)
    assert {"model", "queue", "folders", "failures"} <= set(status)
    shown = run_command("status", "--server", url, home=tmp_path).stdout
    assert shown.startswith("model     demo  loaded on cpu, ")
    assert "\x1b" not in shown
    head, model = run_command("ps", "--server", url, home=tmp_path).stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "DEVICE", "SIZE", "UNTIL"]
    assert model.split()[:3] == ["demo", "loaded", "cpu"]
    assert model.endswith(" from now")
    assert json.loads(run_command("ps", "--json", "--server", url, home=tmp_path).stdout)["device"] == "cpu"


def test_pull_verifies_what_is_there(tmp_path: Path) -> None:
    result = run_command("pull", "--model", "demo", home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).name == "demo_model"
    missing = run_command("pull", "--model", str(tmp_path), home=tmp_path)
    assert missing.returncode == 1
    assert "config.json" in missing.stderr


def test_demo_draws_pictures_and_prints_their_captions(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "florence_daemon", "demo", "--dir", "shown", "--port", "0"],
        env=clean_environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        wait_for(lambda: len(list((tmp_path / "shown").glob("sample-*.txt"))) == 6, 180)
        demo.send_signal(signal.SIGINT)
        printed, errors = demo.communicate(timeout=120)
    assert demo.returncode == 0, errors
    assert "Programs ask at http://127.0.0.1:" in printed
    for text in (tmp_path / "shown").glob("sample-*.txt"):
        assert text.read_text().strip() in printed


def test_version_is_printed(tmp_path: Path) -> None:
    assert run_command("--version", home=tmp_path).stdout == f"florence-daemon {__version__}\n"
