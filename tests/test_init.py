"""A new user's first minutes: init writes a configuration, bash completes words, the log says as much as asked."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from florence_daemon import config_file
from florence_daemon.cli import app
from florence_daemon.config_output import DEFAULT_OUTPUTS
from florence_daemon.errors import ConfigError, UsageError
from florence_daemon.init_command import TRAINING, Wish, ask, compose, write_configuration
from tests.conftest import run_command
from tests.pictures import jpeg


def written(tmp_path: Path, *options: str) -> Path:
    file = tmp_path / "made" / "config.yaml"
    done = run_command("init", str(file), *options, home=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{file}\n"), done.stderr
    return file


def test_options_become_a_configuration_that_is_right(tmp_path: Path) -> None:
    odd = tmp_path / 'a "b": #c é'
    file = written(
        tmp_path,
        *("--model", "demo", "--folder", str(odd), "--trigger", "ohwx style", "--ext", "caption"),
        *("--template", "{prefix}{caption} {tags}", "--overwrite", "stale", "--idle-unload-s", "60", "--port", "5000"),
    )
    settings = config_file.load(file, {})
    (folder,) = settings.folders
    (output,) = folder.outputs
    assert (folder.path, folder.overwrite) == (odd, "stale")
    assert (output.ending, output.prefix, output.template) == (".caption", "ohwx style, ", "{prefix}{caption} {tags}")
    assert (settings.model.name, settings.model.idle_unload_s, settings.server.port) == ("demo", 60, 5000)
    assert run_command("check-config", str(file), home=tmp_path).returncode == 0


def test_each_setting_has_a_comment() -> None:
    lines = compose(Wish(folders=(Path("/a"),), host="0.0.0.0")).splitlines()
    settings = [number for number, line in enumerate(lines) if line.startswith("  ") and ": " in line]
    bare = [lines[n] for n in settings if not lines[n - 1].strip().startswith("#") and "#" not in lines[n]]
    assert [line.split(":")[0].strip(" -{") for line in bare] == ["port", "path", "prompt", "prompt"]


def test_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / "made.yaml"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is there already and stays as it is; --force"):
        write_configuration(file, Wish(), force=False)
    assert file.read_text() == "mine"
    done = run_command("init", str(file), home=tmp_path)
    assert (done.returncode, file.read_text()) == (2, "mine")
    write_configuration(file, Wish(), force=True)
    assert config_file.load(file, {}).folders == ()


def test_network_gets_a_token_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = written(tmp_path, "--host", "0.0.0.0")
    token = config_file.load(file, {}).server.token
    assert token is not None
    assert len(token) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_wrong_option_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="idle_unload_s: -5"):
        write_configuration(tmp_path / "made.yaml", Wish(idle_unload_s=-5.0), force=False)
    assert list(tmp_path.iterdir()) == []


def test_person_is_asked_until_the_answer_is_right() -> None:
    answers = iter(["demo", "/a; /b", "everything", "training", "ohwx", "soon", "0", "here!", "127.0.0.1"])
    wish = ask(Wish(), lambda question: next(answers))
    assert (wish.model, wish.folders, wish.idle_unload_s) == ("demo", (Path("/a"), Path("/b")), 0)
    (output,) = wish.outputs
    assert (output.prompts, output.prefix) == (TRAINING.prompts, "ohwx, ")


def test_person_who_presses_return_gets_the_defaults() -> None:
    assert ask(Wish(), lambda question: "") == Wish()
    assert Wish().outputs == DEFAULT_OUTPUTS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ba"], "backfill"),
        (["backfill", "--ov"], "--overwrite"),
        (["backfill", "--overwrite", "st"], "stale"),
        (["caption", "a.jpg", "--prompt", "MORE"], "MORE_DETAILED_CAPTION"),
        (["service", "un"], "uninstall"),
    ],
)
def test_bash_completes(tmp_path: Path, words: list[str], expected: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    command = tmp_path / "florence-daemon"
    command.write_text(f"#!{sys.executable}\nfrom florence_daemon.cli import main\nmain()\n")
    command.chmod(0o755)
    script = f"""
PATH={tmp_path}:$PATH
eval "$(florence-daemon --show-completion)"
COMP_WORDS=(florence-daemon {" ".join(words)}); COMP_CWORD={len(words)}
"$(complete -p florence-daemon | sed 's/.*-F \\([^ ]*\\).*/\\1/')" florence-daemon
echo "${{COMPREPLY[*]}}"
"""
    done = subprocess.run([bash, "--norc", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"{expected}\n", done.stderr


def test_log_level_says_as_much_as_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    told = run_command("caption", "a.jpg", "--model", "demo", "--log-level", "info", home=tmp_path)
    assert "INFO model loaded on cpu" in told.stderr
    assert told.returncode == 0
    quiet = run_command("caption", "a.jpg", "--model", "demo", home=tmp_path)
    assert (quiet.stdout, "INFO" in quiet.stderr) == (told.stdout, False)


@pytest.mark.parametrize("command", ["run", "demo", "backfill", "caption", "pull", "quantize"])
def test_commands_that_run_a_model_take_a_log_level(command: str) -> None:
    shown = typer.testing.CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert "--log-level" in shown.output
