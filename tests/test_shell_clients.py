"""The clients without dependencies as a person calls them: with the real daemon, and with all that can go wrong."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from florence_daemon.config_output import IMAGE_SUFFIXES
from tests.conftest import RunningDaemon, clean_environment
from tests.pictures import CAPTION, DETAILED, PICTURE, TAGS, jpeg
from tests.vision_server import Say, VisionServer, say, vision_server

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "clients").glob("*.sh"))
CLIENT, FOLDER = ROOT / "clients" / "vision-client.sh", ROOT / "clients" / "vision-caption-folder-images.sh"
TOOLS = [
    "bash",
    "awk",
    "base64",
    "cat",
    "curl",
    "dirname",
    "find",
    "ln",
    "mktemp",
    "mv",
    "rm",
    "sed",
    "sleep",
    "sort",
    "tail",
    "tr",
    "wc",
]
ODD_NAMES = (
    "a b.jpg",
    "-dash.jpg",
    "*.jpg",
    "[ab]?.jpg",
    "new\nline.jpg",
    'it\'s "quoted".jpg',
    "$(touch gone) `id` ;&|.jpg",
    "back\\slash.jpg",
    "Ünïcode 写真 🐈.jpg",
    " leading and trailing .jpg",
    "two.dots.jpg",
    "@at.jpg",
    "UPPER.JPG",
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["jq", "no jq"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a script with the tools that it says it needs, with jq and without, and with nothing else."""
    tools = tmp_path_factory.mktemp("tools")
    for name in TOOLS + (["jq"] if request.param == "jq" else []):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"needs {name}")
        (tools / name).symlink_to(path)
    return lambda *arguments, **settings: call(tools, *arguments, **settings)


def call(
    tools: Path, script: Path, *arguments: str, url: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(tools) | {"PATH": str(tools), "VISION_HOST": url, "TMPDIR": str(tools)} | settings
    result = subprocess.run(
        ["bash", str(script), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=120,
        check=False,
    )
    assert not list(tools.glob("vision-*")), "temporary files are left"
    return result


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    running = RunningDaemon(tmp_path_factory.mktemp("daemon"))
    yield running.url
    running.stop()


@pytest.fixture
def server() -> Iterator[VisionServer]:
    with vision_server() as running:
        yield running


def make_folder(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(ODD_NAMES):
        (folder / ("sub" if number % 2 else ".") / name).write_bytes(jpeg())
    PICTURE.image.save(folder / "scan.tif")
    PICTURE.image.save(folder / "scan2.TIFF")
    (folder / "notes.txt").write_text("not a picture's")
    (folder / ".hidden.jpg").write_bytes(b"a copy program's")
    return folder


def files(folder: Path, pattern: str = "*") -> set[str]:
    return {path.name for path in folder.rglob(pattern) if path.is_file()}


# Against the real daemon


def test_client_asks_the_daemon(run: Run, daemon: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    picture = str(tmp_path / "a.jpg")
    assert run(CLIENT, "model", url=daemon).stdout == "demo\n"
    assert run(CLIENT, "prompts", url=daemon).stdout.splitlines()[:2] == ["GENERATE_TAGS", "CAPTION"]
    assert run(CLIENT, "CAPTION", picture, url=daemon).stdout == CAPTION + "\n"
    assert run(CLIENT, "<caption>", picture, url=daemon.removeprefix("http://")).stdout == CAPTION + "\n"
    assert run(CLIENT, "GENERATE_TAGS", picture, url=daemon + "/").stdout == TAGS + "\n"
    boxes = json.loads(run(CLIENT, "OD", picture, url=daemon).stdout)
    assert sorted(boxes["labels"]) == ["blue square", "red circle"]
    wrong = run(CLIENT, 'no "such\\ prompt', picture, url=daemon)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Invalid prompt" in wrong.stderr


def test_folder_with_odd_names_gets_its_captions(run: Run, daemon: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "-odd folder")
    result = run(FOLDER, "MORE_DETAILED_CAPTION", ".txt", str(folder), url=daemon)
    assert result.returncode == 0, result.stderr
    wanted = {f"{Path(name).stem}.txt" for name in (*ODD_NAMES, "scan.tif", "scan2.TIFF")}
    assert files(folder, "*.txt") == wanted | {"notes.txt"}
    assert {(path.read_bytes()) for path in folder.rglob("*.txt") if path.name in wanted} == {DETAILED.encode() + b"\n"}
    assert not files(folder, ".florence*")
    assert "15 saved, 0 were there already, 0 failed" in result.stderr
    again = run(FOLDER, "MORE_DETAILED_CAPTION", "txt", str(folder), url=daemon)
    assert (again.returncode, again.stdout) == (0, "")
    assert "0 saved, 15 were there already, 0 failed" in again.stderr


def test_picture_that_failed_is_tried_next_time(run: Run, daemon: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg()[:2000])
    (tmp_path / "b.jpg").write_bytes(jpeg())
    first = run(FOLDER, "CAPTION", "txt", str(tmp_path), url=daemon)
    assert (first.returncode, files(tmp_path)) == (1, {"a.jpg", "b.jpg", "b.txt"})
    assert "./a.jpg: Invalid image data" in first.stderr
    assert "1 saved, 0 were there already, 1 failed" in first.stderr
    (tmp_path / "a.jpg").write_bytes(jpeg())
    assert run(FOLDER, "CAPTION", "txt", str(tmp_path), url=daemon).returncode == 0
    assert (tmp_path / "a.txt").read_text() == CAPTION + "\n"


# Against what can go wrong

PAGE = b"<html><body>502 Bad Gateway: a cat</body></html>"
NO_CAPTIONS = {
    "null": say(200, {"result": None}),
    "nothing": say(200, {"result": ""}),
    "blanks": say(200, {"result": " \n\t"}),
    "a number": say(200, {"result": 7}),
    "no result": say(200, {"caption": "a cat"}),
    "an empty list": say(200, {"result": []}),
    "a string": say(200, "a cat"),
    "an empty body": Say(200, b""),
    "a page with status 200": Say(200, PAGE),
    "half an answer": Say(200, b'{"result": "a ca'),
    "two answers": Say(200, b'{"result": "a cat"} {"result": "a dog"}'),
    "an answer and more": Say(200, b'{"result": "a cat"} <!-- proxy -->'),
    "an answer cut off": Say(200, b'{"result": "a cat"}', {"Content-Length": "50"}),
    "a flaw": say(200, {"result": "a cat a cat a cat", "flaw": "loop"}),
}
ERRORS = {
    "a result with an error's status": say(500, {"result": "a cat", "detail": "Error processing image: no memory"}),
    "created": say(201, {"result": "a cat"}),
    "moved": say(301, {"result": "a cat"}, Location="http://127.0.0.1:9/"),
    "400": say(400, {"detail": "Invalid image data: x", "error": "Invalid image data: x"}),
    "401": say(401, {"detail": "a token please"}),
    "404 of a proxy": Say(404, PAGE),
    "413": Say(413, PAGE),
    "422 of FastAPI": say(422, {"detail": [{"loc": ["body"], "msg": "field required"}]}),
    "500 as text": Say(500, b"Internal Server Error"),
    "503 without Retry-After": say(503, {"detail": "stopping"}),
    "504": say(504, {"detail": "no answer within 600 s"}),
}


@pytest.mark.parametrize("answer", NO_CAPTIONS.values(), ids=NO_CAPTIONS)
def test_what_is_no_caption_never_becomes_one(run: Run, server: VisionServer, tmp_path: Path, answer: Say) -> None:
    check_that_nothing_is_written(run, server, tmp_path, answer)


def check_that_nothing_is_written(run: Run, server: VisionServer, tmp_path: Path, answer: Say) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    server.answers = [answer]
    result = run(FOLDER, "CAPTION", "txt", str(tmp_path), url=server.url)
    assert (result.returncode, files(tmp_path)) == (1, {"a.jpg"}), result.stderr
    assert "vision-client.sh: ./a.jpg: " in result.stderr
    assert "<html>" not in result.stdout + result.stderr


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
@pytest.mark.parametrize("answer", ERRORS.values(), ids=ERRORS)
def test_no_error_becomes_a_caption(run: Run, server: VisionServer, tmp_path: Path, answer: Say) -> None:
    check_that_nothing_is_written(run, server, tmp_path, answer)


TEXTS = {
    "escapes": r'"a \"cat\" \\ \/ \n on a \t mat\\n"',
    "characters of two, three and four bytes": r'"\u00fc \u20ac \u5199 \ud83d\ude00 \uD83D\uDC08 5\u00e95"',
    "characters as they are": '"ü € 写 😀"',
    "backslashes before u": r'"\\u00fc \\\u00fc"',
    "percent and octal": r'"100 % %s \\0101 \\c \\x41"',
    "control characters": r'"a\u0007\u001b[31m\u0000b\u007f"',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_is_read_as_json_says(run: Run, server: VisionServer, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    body = f' \r\n{{"other": [1, -2.5e+3, true, null, {{"result": "no"}}, "\\"}}"], "result" : {text} }}\n'
    server.answers = [Say(200, body.encode())]
    told = json.loads(text)
    wanted = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", told)
    result = run(CLIENT, "CAPTION", str(tmp_path / "a.jpg"), url=server.url)
    assert (result.returncode, result.stdout) == (0, wanted + "\n"), result.stderr


BROKEN = [
    '{"result": "a\nb"}',
    '{"result": "\\x41"}',
    '{"result": "\\u12g4"}',
    '{"result": "a",}',
    "{'result': 'a'}",
    '{"result": "a"',
    '{"a": 01, "result": "a"}',
    '{"result" "a"}',
    '["result", "a"]',
    '{"a": [1 2], "result": "a"}',
    "[" * 300,
]


@pytest.mark.parametrize("body", BROKEN)
def test_what_is_not_json_is_no_answer_without_jq_either(server: VisionServer, tmp_path: Path, body: str) -> None:
    for name in TOOLS:
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    server.answers = [Say(200, body.encode())]
    result = call(tmp_path, CLIENT, "CAPTION", str(tmp_path / "a.jpg"), url=server.url)
    assert result.stdout == ""
    assert result.returncode in (1, 69)


def test_every_awk_reads_the_same(server: VisionServer, tmp_path: Path) -> None:
    for name in TOOLS:
        if name != "awk":
            (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    halves = "\ud83d a \ude00 \ud83d\ud83dx"  # of a pair, which stand for nothing
    server.answers = [say(200, {"a": {"b": [1, "x"]}, "result": f'ü 😀 "\\" {halves}' + "word " * 2000})]
    found = [path for path in map(shutil.which, ("mawk", "gawk", "original-awk", "awk")) if path]
    for path in found:
        (tmp_path / "awk").unlink(missing_ok=True)
        (tmp_path / "awk").symlink_to(path)
        said = call(tmp_path, CLIENT, "CAPTION", str(tmp_path / "a.jpg"), url=server.url).stdout
        assert said == 'ü 😀 "\\" � a � ��x' + "word " * 2000 + "\n", path


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_picture_is_sent_as_it_is_with_its_prompt(run: Run, server: VisionServer, tmp_path: Path) -> None:
    picture = os.urandom(300_000)
    (tmp_path / "a.jpg").write_bytes(picture)
    server.answers = [say(200, {"result": "a cat"})]
    run(CLIENT, '<open_vocabulary_detection> a "red" car\\', str(tmp_path / "a.jpg"), url=server.url)
    path, _, sent = server.seen[0]
    assert path == "/process_image"
    assert sent["prompt"] == '<OPEN_VOCABULARY_DETECTION> a "red" car\\'
    assert base64.b64decode(sent["image"], validate=True) == picture


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_lines_of_an_answer_become_one(run: Run, server: VisionServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    server.answers = [say(200, {"result": " A cat sits.\n\n  cat,  animal \nmat\n"})]
    run(FOLDER, "MIXED_CAPTION", "caption", str(tmp_path), url=server.url)
    assert (tmp_path / "a.caption").read_text() == "A cat sits. cat, animal, mat\n"


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_busy_server_is_asked_again_when_it_wants(run: Run, server: VisionServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    server.answers = [
        say(503, {"detail": "32 requests wait already"}, Retry_After="1"),
        say(429, {"detail": "slowly"}, retry_after="0"),
        say(200, {"result": "a cat"}),
    ]
    result = run(CLIENT, "CAPTION", str(tmp_path / "a.jpg"), url=server.url)
    assert result.stdout == "a cat\n"
    assert "32 requests wait already; asked again in 1 s" in result.stderr
    assert len(server.seen) == 3


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_slow_server_is_given_up(run: Run, server: VisionServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    server.answers = [Say(200, b'{"result": "a cat"}', wait_s=10)]
    result = run(CLIENT, "CAPTION", str(tmp_path / "a.jpg"), url=server.url, VISION_TIMEOUT="2")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no answer from" in result.stderr


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_server_that_answers_nobody_ends_the_run(run: Run, server: VisionServer, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"a picture")
    gone = run(FOLDER, "CAPTION", "txt", str(tmp_path), url="http://127.0.0.1:9")
    assert (gone.returncode, files(tmp_path, "*.txt")) == (1, set())
    assert gone.stderr.count("no server answers at http://127.0.0.1:9") == 1
    assert "Stopped" in gone.stderr
    server.answers = [say(400, {"detail": "Invalid prompt '<NOPE>'"})]
    wrong = run(FOLDER, "NOPE", "txt", str(tmp_path), url=server.url)
    assert (wrong.returncode, len(server.seen)) == (2, 1)


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_token_is_sent_and_not_shown(run: Run, server: VisionServer) -> None:
    server.answers = [say(200, "demo")]
    run(CLIENT, "model", url=server.url, VISION_TOKEN="other")
    run(CLIENT, "model", url=server.url, VISION_TOKEN="other", FLORENCE_DAEMON_TOKEN="s3cret+/=")
    run(CLIENT, "model", url=server.url)
    assert [headers.get("Authorization") for _, headers, _ in server.seen] == ["Bearer other", "Bearer s3cret+/=", None]
    odd = run(CLIENT, "model", url=server.url, VISION_TOKEN='a"\nheader = "X: y')
    assert (odd.returncode, len(server.seen)) == (2, 3)


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_proxy_of_the_environment_is_not_asked_for_this_machine(run: Run, server: VisionServer) -> None:
    server.answers = [say(200, "demo")]
    assert run(CLIENT, "model", url=server.url, http_proxy="http://127.0.0.1:9").stdout == "demo\n"


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_captions_that_are_there_stay(run: Run, server: VisionServer, tmp_path: Path) -> None:
    for name in ("mine.jpg", "empty.jpg", "late.jpg", "linked.jpg"):
        (tmp_path / name).write_bytes(b"a picture")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "linked.txt").symlink_to(tmp_path / "nowhere")
    server.answers = [say(200, {"result": "a cat"})]
    server.on_request = lambda: (tmp_path / "late.txt").write_text("a person was faster") and None
    result = run(FOLDER, "CAPTION", "txt", str(tmp_path), url=server.url)
    assert result.returncode == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "late.txt").read_text() == "a person was faster"
    assert not (tmp_path / "nowhere").exists()
    assert len(server.seen) == 1
    assert "0 saved, 4 were there already, 0 failed" in result.stderr
    assert "2 of those that were there are empty files" in result.stderr


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_disk_without_hard_links_gets_its_captions_too(
    run: Run, server: VisionServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bin_directory = tmp_path_factory.mktemp("bin")
    (bin_directory / "ln").write_text("#!/bin/sh\nexit 1\n")
    (bin_directory / "ln").chmod(0o755)
    for name in ("a.jpg", "late.jpg"):
        (tmp_path / name).write_bytes(b"a picture")
    server.answers = [say(200, {"result": "a cat"})]
    server.on_request = lambda: (tmp_path / "late.txt").write_text("a person was faster") and None
    path = f"{bin_directory}:{os.environ['PATH']}"
    assert run(FOLDER, "CAPTION", "txt", str(tmp_path), url=server.url, PATH=path).returncode == 0
    assert (tmp_path / "a.txt").read_text() == "a cat\n"
    assert (tmp_path / "late.txt").read_text() == "a person was faster"
    assert not files(tmp_path, ".florence*")


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_two_pictures_of_one_name_do_not_share_a_caption(run: Run, server: VisionServer, tmp_path: Path) -> None:
    for name in ("pair.jpg", "pair.png", "pair.b.png"):
        (tmp_path / name).write_bytes(b"a picture")
    server.answers = [say(200, {"result": "a cat"})]
    result = run(FOLDER, "CAPTION", "txt", str(tmp_path), url=server.url)
    assert (result.returncode, files(tmp_path, "*.txt")) == (1, {"pair.txt", "pair.b.txt"})
    assert "./pair.png: shares its caption with ./pair.jpg; rename one of the two" in result.stderr


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_terminal_is_not_steered_by_names_or_servers(run: Run, server: VisionServer, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J.jpg").write_bytes(b"a picture")
    server.answers = [say(500, {"detail": "no\x1b]0;title\x07"})]
    result = run(FOLDER, "CAPTION", "txt", str(tmp_path), url=server.url)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", result.stdout + result.stderr)


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([CLIENT], "Usage"),
        ([CLIENT, "CAPTION"], "Usage"),
        ([FOLDER, "CAPTION", "txt"], "Usage"),
        ([FOLDER, "CAPTION", "txt", "nowhere"], "nowhere is no folder"),
        ([FOLDER, "CAPTION", "JPG", "."], "a caption must never replace a picture"),
        ([FOLDER, "CAPTION", "a/b", "."], "is not a file name's ending"),
    ],
)
def test_wrong_use_ends_with_2(run: Run, arguments: list[str], expected: str) -> None:
    result = run(*arguments)
    assert (result.returncode, expected in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("run", ["no jq"], indirect=True)
def test_picture_that_is_not_there_ends_with_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for name, reason in (("none.jpg", "there is no such file"), ("empty.jpg", "it is empty")):
        result = run(CLIENT, "CAPTION", str(tmp_path / name))
        assert (result.returncode, reason in result.stderr) == (1, True)


# The scripts themselves


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    result = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert result.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_uses_nothing_that_bash_3_2_of_macos_lacks(script: Path) -> None:
    later = (
        r"\b(mapfile|readarray|coproc)\b|declare -A|local -[An]|\$\{\w+(,|\^)|&>>|\|&|\$\{\w+@|\[ -v |EPOCH|%\(.*\)T"
    )
    code = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert [line for line in code if re.search(later, line)] == []


def test_clients_take_the_same_files_for_pictures_as_the_daemon() -> None:
    shell = re.search(r"^ENDINGS='(.*)'$", FOLDER.read_text(), re.MULTILINE)
    windows = re.search(r"^\$Endings = (.*)$", (ROOT / "windows" / FOLDER.name).with_suffix(".ps1").read_text(), re.M)
    assert shell is not None
    assert windows is not None
    assert {f".{ending}" for ending in shell[1].split()} == IMAGE_SUFFIXES
    assert set(re.findall(r"'(\.\w+)'", windows[1])) == IMAGE_SUFFIXES


@pytest.mark.parametrize("name", ["vision-client", "vision-caption-folder-images"])
def test_clients_of_both_worlds_read_the_same_variables_and_end_with_the_same_codes(name: str) -> None:
    shell = (ROOT / "clients" / f"{name}.sh").read_text()
    windows = (ROOT / "windows" / f"{name}.ps1").read_text()
    variables = r"\b(VISION_[A-Z]+|FLORENCE_DAEMON_[A-Z]+)\b"
    assert set(re.findall(variables, shell)) == set(re.findall(variables, windows))
    codes = [
        re.findall(rf"EXIT_?{end} ?= ?(\d+)", text, re.IGNORECASE)
        for end in ("FAILED", "USAGE", "SERVER")
        for text in (shell, windows)
    ]
    assert codes == [["1"], ["1"], ["2"], ["2"], ["69"], ["69"]]
