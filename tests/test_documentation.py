"""The documentation keeps to the program: commands and options that exist, links that lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from florence_daemon import config_file
from florence_daemon.config import FolderConfig
from florence_daemon.overrides import Override, Settings
from florence_daemon.tasks import prompt_tokens

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "integrations").glob("*/*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(code) for kind, code in found if kind == language]


def commands() -> list[list[str]]:
    lines = [line for page in PAGES for code in blocks(page, "sh") for line in code.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(florence-daemon [^`]+ --[^`]+)`", PAGES[0].read_text(encoding="utf-8"))
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("florence-daemon ")]
    return [words[1:] for words in found]


@cache
def help_of(command: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "florence_daemon", command, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert result.returncode == 0, f"florence-daemon {command}: {result.stderr}"
    return result.stdout


def test_every_command_and_option_that_is_documented_exists() -> None:
    assert len(commands()) >= 3
    for command, *arguments in commands():
        for option in (word for word in arguments if word.startswith("--")):
            assert re.search(rf"{option}\b", help_of(command)), f"florence-daemon {command} has no {option}"


def test_every_configuration_that_is_documented_is_right(tmp_path: Path) -> None:
    examples = [code for page in PAGES for code in blocks(page, "yaml")]
    assert len(examples) >= 2
    for code in examples:
        assert isinstance(yaml.safe_load(code), dict)
        if code.startswith("# .florence.yaml"):
            Override(str(tmp_path / ".florence.yaml"), code.encode()).over(Settings(FolderConfig(path=tmp_path)))
            continue
        (tmp_path / "example.yaml").write_text(code)
        config_file.load(tmp_path / "example.yaml", {})


def headings(page: Path) -> set[str]:
    """What links call the headings of a page, as GitHub makes it of their words."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def links(page: Path) -> list[tuple[str, str]]:
    """The files that a page links to, with the heading if a link names one; its own headings are links to no file."""
    found = re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8"))
    return [(target, heading) for target, heading in found if not target.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target, heading in links(page):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not heading or heading in headings(file), f"{target}#{heading}"


def test_readme_leads_to_every_page() -> None:
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= {target for target, _ in links(PAGES[0])}


def test_readme_names_every_prompt() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [token for token in prompt_tokens() if token.strip("<>") not in text] == []


def test_both_ways_to_set_up_know_the_same_options() -> None:
    shell = (ROOT / "vision-server.sh").read_text(encoding="utf-8")
    batch = (ROOT / "windows" / "vision-server.bat").read_bytes()
    assert b"\r\n" in batch
    assert b"\n" not in batch.replace(b"\r\n", b"")
    for word in ("--demo", "--set-up", "formats", "FLORENCE_EXTRAS", "constraints.txt"):
        assert word in shell + (ROOT / "tools" / "venv.sh").read_text(encoding="utf-8")
        assert word.encode() in batch


def test_constraints_pin_every_dependency() -> None:
    pins = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    pinned = {name.lower().replace("_", "-") for name in pins}
    requirements = metadata.requires("florence-daemon") or []
    needed = {re.split(r"[^\w-]", each)[0].lower().replace("_", "-") for each in requirements}
    assert {"torch", "falcon", "pytest"} <= needed
    assert needed <= pinned
