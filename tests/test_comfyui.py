"""ComfyUI's node, loaded and called as ComfyUI does, with its tensors: the real server, and what else may answer."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import random
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from florence_daemon.demo_chance import draw_picture
from florence_daemon.tasks import prompt_tokens
from tests.conftest import RunningDaemon, wait_for
from tests.pictures import CAPTION, DETAILED, PICTURE
from tests.vision_server import Say, VisionServer, say, vision_server

FOLDER = Path(__file__).parents[1] / "integrations" / "comfyui"
# What ComfyUI calls a module from this folder, and what it has installed itself.
MODULE = "/comfyui/custom_nodes/florence_daemon".replace(".", "_x_")
COMFYUI_HAS = {"numpy", "PIL", "comfy"}
TOKEN = "all-workflows-share-it"

Call = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture(autouse=True)
def nobody_elses_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VISION_HOST", "VISION_TOKEN", "FLORENCE_DAEMON_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def package() -> Iterator[types.ModuleType]:
    """The folder as ComfyUI loads it."""
    spec = importlib.util.spec_from_file_location(MODULE, FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]


@pytest.fixture
def node(package: types.ModuleType) -> Any:
    return package.NODE_CLASS_MAPPINGS["FlorenceDaemonCaption"]


@pytest.fixture
def caption(node: Any) -> Call:
    """Run the node as ComfyUI's executor does: with all inputs that it names, by default as it says."""

    def call(image: torch.Tensor, **given: str) -> tuple[list[str], list[str]]:
        inputs = node.INPUT_TYPES()
        values = defaults(inputs) | {"image": image} | given
        assert set(values) == {name for group in inputs.values() for name in group}
        found = getattr(node(), node.FUNCTION)(**values)
        assert len(found) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_IS_LIST)
        assert all(isinstance(text, str) for texts in found for text in texts)
        return found  # type: ignore[no-any-return]

    return call


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    running = RunningDaemon(tmp_path_factory.mktemp("daemon"))
    yield running
    running.stop()


@pytest.fixture
def server() -> Iterator[VisionServer]:
    with vision_server() as running:
        yield running


def defaults(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for name, (kind, *options) in ((name, value) for group in inputs.values() for name, value in group.items()):
        if options:
            found[name] = options[0]["default"]
            assert isinstance(found[name], str)
            assert kind == "STRING" or found[name] in kind
    return found


def tensor(*images: Image.Image) -> torch.Tensor:
    """A batch as ComfyUI's LoadImage makes it: (B, H, W, C) float32, 0 to 1."""
    return torch.stack([torch.from_numpy(np.array(image).astype(np.float32) / 255.0) for image in images])


def image_sent(server: VisionServer, number: int = -1) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(server.seen[number][2]["image"])))


# What it is


def test_comfyui_finds_the_node_and_all_that_it_asks_for(package: types.ModuleType, node: Any) -> None:
    assert set(package.NODE_DISPLAY_NAME_MAPPINGS) == set(package.NODE_CLASS_MAPPINGS)
    assert callable(getattr(node, node.FUNCTION))
    assert node.RETURN_TYPES == ("STRING", "STRING")
    assert isinstance(node.CATEGORY, str)
    assert node.INPUT_TYPES()["required"]["image"] == ("IMAGE",)


def test_it_knows_the_prompts_that_the_server_knows(node: Any) -> None:
    assert [f"<{name}>" for name in node.INPUT_TYPES()["required"]["prompt"][0]] == prompt_tokens()


def test_it_needs_nothing_that_comfyui_has_not() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    lines = [line.split() for line in code.splitlines() if line.strip().startswith(("import ", "from "))]
    roots = {words[1].split(".")[0] for words in lines if not words[1].startswith(".")}
    assert roots <= COMFYUI_HAS | sys.stdlib_module_names
    assert "numpy" in roots


def test_the_example_workflow_fits_the_node(node: Any, caption: Call, daemon: RunningDaemon) -> None:
    workflow = json.loads((FOLDER / "workflow.json").read_text(encoding="utf-8"))
    nodes = {each["id"]: each for each in workflow["nodes"]}
    ours = next(each for each in nodes.values() if each["type"] == "FlorenceDaemonCaption")
    inputs = node.INPUT_TYPES()
    widgets = list(defaults(inputs))
    assert len(ours["widgets_values"]) == len(widgets)
    assert [(each["name"], each["type"]) for each in ours["inputs"]] == [("image", "IMAGE")]
    assert [(each["name"], each["type"]) for each in ours["outputs"]] == list(
        zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)
    )
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert nodes[source]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][place]["type"] in (kind, "*")
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    values = dict(zip(widgets, ours["widgets_values"], strict=True))
    assert values == defaults(inputs)
    assert caption(tensor(PICTURE.image), **values | {"server": daemon.url})[0] == [DETAILED]


# With the real server


def test_an_image_gets_its_caption(caption: Call, daemon: RunningDaemon) -> None:
    texts, answers = caption(tensor(PICTURE.image), server=daemon.url, prompt="CAPTION")
    assert texts == [CAPTION]
    assert [json.loads(answer) for answer in answers] == [CAPTION]


def test_every_image_of_a_batch_gets_its_own(caption: Call, daemon: RunningDaemon) -> None:
    images = [draw_picture(random.Random(seed)).image.resize((320, 240)) for seed in range(9)]
    texts, _ = caption(tensor(*images), server=daemon.url, prompt="CAPTION")
    assert texts == [caption(tensor(image), server=daemon.url, prompt="CAPTION")[0][0] for image in images]
    assert len(set(texts)) > 5


def test_places_come_as_json_in_pixels_and_as_words(caption: Call, daemon: RunningDaemon) -> None:
    texts, answers = caption(tensor(PICTURE.image), server=daemon.url, prompt="OD")
    places = json.loads(answers[0])
    assert sorted(places["labels"]) == sorted(texts[0].split(", "))
    assert len(places["bboxes"]) == 2
    assert max(value for box in places["bboxes"] for value in box) > 500


def test_text_goes_with_the_prompts_that_take_one(caption: Call, daemon: RunningDaemon) -> None:
    _, answers = caption(
        tensor(PICTURE.image), server=daemon.url, prompt="CAPTION_TO_PHRASE_GROUNDING", text="\n a red circle \n"
    )
    assert "bboxes" in json.loads(answers[0])


def test_text_with_a_prompt_that_takes_none_is_refused_with_the_reason(caption: Call, daemon: RunningDaemon) -> None:
    with pytest.raises(RuntimeError, match="400: <CAPTION> takes no text"):
        caption(tensor(PICTURE.image), server=daemon.url, prompt="CAPTION", text="a red circle")


def test_keep_alive_says_how_long_the_model_stays(caption: Call, daemon: RunningDaemon) -> None:
    batch = tensor(PICTURE.image, PICTURE.image, PICTURE.image)
    caption(batch, server=daemon.url, prompt="CAPTION", keep_alive="7m")
    assert daemon.get("/status")["model"]["keep_alive_s"] == 420
    caption(batch, server=daemon.url, prompt="CAPTION")
    assert daemon.get("/status")["model"]["keep_alive_s"] == 420
    caption(batch, server=daemon.url, prompt="CAPTION", keep_alive="0")
    wait_for(lambda: daemon.get("/status")["model"]["state"] == "unloaded", what="the model to be unloaded")


def test_a_wrong_keep_alive_is_told(caption: Call, daemon: RunningDaemon) -> None:
    with pytest.raises(RuntimeError, match="422: keep_alive: 'soon' is no duration"):
        caption(tensor(PICTURE.image), server=daemon.url, keep_alive="soon")


def test_a_token_comes_from_the_environment(
    caption: Call, start_daemon: Callable[..., RunningDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = start_daemon(config=f"model: {{name: demo}}\nserver: {{token: {TOKEN}}}\n")
    monkeypatch.setenv("FLORENCE_DAEMON_TOKEN", TOKEN)
    with pytest.raises(RuntimeError, match=r"401: it wants a token\. Set FLORENCE_DAEMON_TOKEN .* and VISION_HOST"):
        caption(tensor(PICTURE.image), server=guarded.url)
    monkeypatch.setenv("VISION_HOST", guarded.url)
    assert caption(tensor(PICTURE.image), prompt="CAPTION")[0] == [CAPTION]
    monkeypatch.setenv("FLORENCE_DAEMON_TOKEN", "another")
    with pytest.raises(RuntimeError, match="401: this server asks for its token"):
        caption(tensor(PICTURE.image), server=guarded.url)


# The pixels


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pixels_arrive_as_they_are(caption: Call, server: VisionServer, mode: str) -> None:
    server.answers = [say(200, {"result": "a shape"})]
    levels = np.random.default_rng(1).integers(0, 256, (5, 7, len(mode)), dtype=np.uint8)
    caption(torch.from_numpy(levels.astype(np.float32) / 255.0)[None], server=server.url)
    sent = image_sent(server)
    assert sent.mode == mode
    assert np.array_equal(np.array(sent).reshape(levels.shape), levels)


def test_values_out_of_range_and_no_numbers_are_pixels_too(caption: Call, server: VisionServer) -> None:
    server.answers = [say(200, {"result": "a shape"})]
    values = [-3.0, 0.0, 0.5, 1.0, 1.2, float("nan"), float("inf"), float("-inf"), 0.499]
    caption(torch.tensor(values).reshape(1, 1, 3, 3), server=server.url)
    assert np.array(image_sent(server)).ravel().tolist() == [0, 0, 128, 255, 255, 0, 255, 0, 127]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_kind_of_float_will_do_also_one_that_is_learnt(caption: Call, server: VisionServer, kind: Any) -> None:
    server.answers = [say(200, {"result": "a shape"})]
    caption(torch.ones(1, 4, 4, 3, dtype=kind, requires_grad=True), server=server.url)
    assert np.array(image_sent(server)).min() == 255


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 2), (0, 4, 4, 3), (1, 0, 4, 3), (1, 4, 4)])
def test_what_is_no_image_is_named(caption: Call, server: VisionServer, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="their shape is"):
        caption(torch.zeros(shape), server=server.url)
    assert server.seen == []


# What else may answer


def test_a_busy_server_is_asked_again_when_it_wants(caption: Call, server: VisionServer) -> None:
    busy = say(503, {"detail": "full"}, Retry_After="1")
    server.answers = [busy, say(429, {"detail": "full"}, Retry_After="1"), say(200, {"result": "a shape"})]
    assert caption(tensor(PICTURE.image), server=server.url)[0] == ["a shape"]
    assert len(server.seen) == 3


def test_a_batch_is_asked_several_at_a_time_and_says_only_at_its_end_how_long_the_model_stays(
    caption: Call, server: VisionServer
) -> None:
    together, met = threading.Barrier(4, timeout=60), []

    def meet() -> None:
        if len(server.seen) <= 4:
            met.append(together.wait())

    server.on_request, server.answers = meet, [say(200, {"result": "a shape"})]
    caption(tensor(*[PICTURE.image] * 6), server=server.url, keep_alive="0")
    assert len(met) == 4
    assert [body.get("keep_alive") for _, _, body in server.seen] == [None] * 5 + ["0"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (say(503, {"detail": "the model cannot be loaded"}), "503: the model cannot be loaded"),
        (say(500, {"detail": "Error processing image: CUDA"}), "500: Error processing image: CUDA"),
        (Say(413, b"<html>too large</html>"), "413: "),
        (Say(200, b"<html>a proxy's page</html>"), "is not a Florence Daemon"),
        (say(200, {"result": None}), "is not a Florence Daemon"),
        (say(200, ["a shape"]), "is not a Florence Daemon"),
        (say(200, {"result": {"labels": None}}), "is not a Florence Daemon"),
        (Say(500, b"9\r\n{", {"Transfer-Encoding": "chunked"}), "500: Internal Server Error"),
        (say(200, {"result": "a shape", "flaw": 7}), "is not a Florence Daemon"),
        (Say(200, b'{"result": "a sh', {"Content-Length": "999999"}), "is not a Florence Daemon"),
    ],
)
def test_no_error_becomes_a_caption(caption: Call, server: VisionServer, answer: Say, reason: str) -> None:
    server.answers = [answer]
    with pytest.raises(RuntimeError, match=reason):
        caption(tensor(PICTURE.image), server=server.url)


def test_one_image_without_an_answer_fails_the_batch(caption: Call, server: VisionServer) -> None:
    server.answers = [say(200, {"result": "a shape"}), say(500, {"detail": "Error processing image: x"})]
    with pytest.raises(RuntimeError, match="500: Error processing image"):
        caption(tensor(PICTURE.image, PICTURE.image, PICTURE.image), server=server.url)


def test_a_caption_that_is_not_fit_to_be_one_is_told(
    caption: Call, server: VisionServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [say(200, {"result": "a a a a a", "flaw": "loop"})]
    assert caption(tensor(PICTURE.image), server=server.url)[0] == ["a a a a a"]
    assert "is not fit to be one (loop)" in caplog.text


def test_nobody_there_is_told(caption: Call) -> None:
    with pytest.raises(RuntimeError, match=r"no Florence Daemon answers at http://127\.0\.0\.1:9 "):
        caption(tensor(PICTURE.image), server="127.0.0.1:9")


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://nas",
        "http://",
        "http://nas:port",
        "http://[::1",
        "http://user@nas",
        "http://nas?x=1",
        "http://nas\nX: 1",
    ],
)
def test_what_is_no_address_is_told(caption: Call, address: str) -> None:
    with pytest.raises(RuntimeError, match="is not an address like"):
        caption(tensor(PICTURE.image), server=address)


def test_a_workflow_from_elsewhere_gets_no_token_nor_does_a_redirect(
    caption: Call, server: VisionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLORENCE_DAEMON_TOKEN", TOKEN)
    server.answers = [say(200, {"result": "a shape"})]
    caption(tensor(PICTURE.image), server=server.url)
    assert "Authorization" not in server.seen[-1][1]
    with vision_server() as trusted:
        monkeypatch.setenv("VISION_HOST", trusted.url.removeprefix("http://"))
        trusted.answers = [Say(307, b"", {"Location": f"{server.url}/process_image"})]
        with pytest.raises(RuntimeError, match="307"):
            caption(tensor(PICTURE.image))
        assert trusted.seen[-1][1]["Authorization"] == f"Bearer {TOKEN}"
    assert len(server.seen) == 1


def test_a_token_that_no_header_carries_is_not_shown(caption: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORENCE_DAEMON_TOKEN", "secret\nX: 1")
    with pytest.raises(RuntimeError, match="FLORENCE_DAEMON_TOKEN holds what a header cannot carry") as raised:
        caption(tensor(PICTURE.image))
    assert "secret" not in str(raised.value)


def test_this_machine_is_asked_without_a_proxy(
    caption: Call, server: VisionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.answers = [say(200, {"result": "a shape"})]
    assert caption(tensor(PICTURE.image), server=server.url)[0] == ["a shape"]


# With ComfyUI around it


class Cancelled(BaseException):
    """As ComfyUI's InterruptProcessingException."""


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """What the node uses of ComfyUI."""
    noted = types.SimpleNamespace(is_cancelled=False, total=0, done=0)

    def throw_exception_if_processing_interrupted() -> None:
        if noted.is_cancelled:
            noted.is_cancelled = False  # it says so once
            raise Cancelled

    class ProgressBar:
        def __init__(self, total: int) -> None:
            noted.total = total

        def update(self, value: int) -> None:
            noted.done += value

    for name, members in {
        "comfy": {},
        "comfy.model_management": {
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted
        },
        "comfy.utils": {"ProgressBar": ProgressBar},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return noted


def test_its_bar_moves_with_each_image(caption: Call, server: VisionServer, comfy: types.SimpleNamespace) -> None:
    server.answers = [say(200, {"result": "a shape"})]
    caption(tensor(*[PICTURE.image] * 3), server=server.url)
    assert (comfy.total, comfy.done) == (3, 3)


@pytest.mark.parametrize("held", ["the server is busy", "the server does not answer"])
def test_cancel_is_heard_whatever_is_waited_for(
    caption: Call, server: VisionServer, comfy: types.SimpleNamespace, held: str
) -> None:
    released = threading.Event()
    server.answers = [say(503, {"detail": "full"}, Retry_After="600")]

    def cancel() -> None:
        comfy.is_cancelled = True
        if held == "the server does not answer":
            released.wait(60)

    server.on_request = cancel
    with pytest.raises(Cancelled):
        caption(tensor(*[PICTURE.image] * 6), server=server.url)
    assert not released.is_set()
    released.set()
    wait_for(lambda: not [each for each in threading.enumerate() if each.name == "florence-daemon"], what="the threads")
    assert len(server.seen) <= 4


def test_cancel_is_heard_though_every_answer_is_there_at_once(
    caption: Call, server: VisionServer, comfy: types.SimpleNamespace
) -> None:
    server.answers = [say(200, {"result": "a shape"})]

    def cancel() -> None:
        comfy.is_cancelled = len(server.seen) > 1

    server.on_request = cancel
    with pytest.raises(Cancelled):
        caption(tensor(*[PICTURE.image.resize((8, 8))] * 100), server=server.url)
    assert comfy.done < 99


def test_it_loads_in_a_python_that_has_nothing_else(tmp_path: Path) -> None:
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("florence_node", {str(FOLDER / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["florence_node"] = module
spec.loader.exec_module(module)
print(*module.NODE_CLASS_MAPPINGS, sorted({{"httpx", "falcon", "florence_daemon"}} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.stdout.split("\n")[0] == "FlorenceDaemonCaption []", found.stderr
