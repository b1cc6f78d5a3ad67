"""The page as a person uses it, in a real browser, with the real daemon and the demo model."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from florence_daemon.demo_pictures import draw_shapes, encode_picture
from florence_daemon.http.openapi import document
from tests.conftest import RunningDaemon, wait_for
from tests.page.browser import PHONE, check_accessible, is_wider_than_its_window, open_browser, visit
from tests.pictures import CAPTION, TAGS, jpeg

expect.set_options(timeout=60_000)

HOSTILE = "<img src=x onerror=alert(1)>&lt;b&gt;.jpg"
LONG = "a-name-without-any-place-to-break-it-" * 5 + "end.jpg"
NAMES = ("plain.jpg", "edited.jpg", "contested.jpg", HOSTILE, LONG)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("page") / "pictures"
    found.mkdir()
    for name in NAMES:
        (found / name).write_bytes(jpeg())
    (found / "text.jpg").write_text("this is no picture")
    return found


def configuration(folder: Path) -> dict[str, Any]:
    outputs = [{"prompt": "CAPTION", "ext": "txt"}, {"prompt": "GENERATE_TAGS", "ext": "tag"}]
    folders = [{"path": str(folder), "settle_s": 0.2, "outputs": outputs}, {"path": str(folder.parent / "missing")}]
    model = {"name": "demo", "idle_unload_s": 3600}
    return {"model": model, "state": {"dir": str(folder.parent / "kept")}, "folders": folders}


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[RunningDaemon]:
    running = RunningDaemon(folder.parent, config=json.dumps(configuration(folder)))
    wait_for(lambda: len(list(folder.glob("*.t*"))) == 2 * len(NAMES), 180, "the captions")
    wait_for(lambda: running.get("/status")["failures"], 60)
    yield running
    running.stop()


@pytest.fixture
def page(browser: Browser, daemon: RunningDaemon) -> Iterator[Page]:
    with visit(browser, daemon.url) as opened:
        yield opened


def card_of(page: Page, name: str) -> Locator:
    return page.locator(".card").filter(has=page.get_by_text(name, exact=True))


def caption_of(page: Page, name: str, ext: str = ".txt") -> Locator:
    return card_of(page, name).locator(f'.caption[data-key="{ext}"]')


def has_loaded(image: Locator) -> bool:
    return bool(image.evaluate("image => image.complete && image.naturalWidth > 0"))


def choose(page: Page, name: str = "dropped.jpg", content: bytes | None = None) -> None:
    """Drop a picture onto the page, as from a file manager."""
    picture = base64.b64encode(content or jpeg()).decode()
    expect(page.locator("#stage")).to_be_visible()
    page.evaluate(
        """([base64, name]) => {
          const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
          const dropped = new DataTransfer();
          dropped.items.add(new File([bytes], name, { type: "image/jpeg" }));
          for (const kind of ["dragenter", "dragover", "drop"]) {
            const event = new DragEvent(kind, { dataTransfer: dropped, bubbles: true, cancelable: true });
            document.getElementById("stage").dispatchEvent(event);
          }
        }""",
        [picture, name],
    )


def ask(page: Page, prompt: str, text: str | None = None) -> None:
    page.get_by_label("Prompt").select_option(prompt)
    if text is not None:
        page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_it_shows_what_the_daemon_did_and_how_it_is(page: Page, folder: Path) -> None:
    expect(page.locator("#model-state")).to_have_text("loaded")
    expect(page.locator("#model-leaves")).to_have_text(re.compile(r"leaves in \d+ (s|min)"))
    expect(page.get_by_role("listitem").filter(has_text=re.compile("told of changes|is being scanned"))).to_be_visible()
    expect(page.locator('[data-health="failed"]')).to_contain_text("is not there")
    expect(page.locator("#failures")).to_contain_text("is not a picture that can be read")
    expect(page.locator("#plot-title")).to_contain_text("in the last hour")
    expect(page.locator("#plot .bar-some").first).to_be_visible()
    expect(page.locator(".card")).to_have_count(len(NAMES))
    expect(caption_of(page, "plain.jpg").locator(".text")).to_have_text(CAPTION)
    expect(caption_of(page, "plain.jpg", ".tag").locator(".text")).to_have_text(TAGS)
    image = card_of(page, "plain.jpg").locator("img")
    wait_for(lambda: has_loaded(image), what="the thumbnail")
    check_accessible(page)


def test_what_the_page_asks_for_is_as_described(daemon: RunningDaemon) -> None:
    schemas = document("demo")["components"]["schemas"]
    shown = daemon.get("/pictures?limit=3")["pictures"]
    assert len(shown) == 3
    for each in shown:
        assert set(each) == set(schemas["Picture"]["properties"])
        for caption in each["captions"]:
            assert set(caption) == set(schemas["Picture"]["properties"]["captions"]["items"]["properties"])


def test_names_and_captions_are_text_whatever_they_hold(page: Page, folder: Path) -> None:
    said = '<script>alert(2)</script> "&amp;" <img src=x onerror=alert(3)>'
    (folder / Path(HOSTILE).with_suffix(".txt")).write_text(said + "\n")
    expect(caption_of(page, HOSTILE).locator(".text")).to_have_text(said)
    assert page.locator(".name", has_text=HOSTILE).count() == 1
    assert page.locator("main script, main img[src='x']").count() == 0


def test_caption_is_edited_by_keyboard_and_is_a_persons_from_then_on(page: Page, folder: Path) -> None:
    page.get_by_role("button", name="Edit .txt of edited.jpg").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("a person's words")
    page.keyboard.press("Escape")
    expect(caption_of(page, "edited.jpg").locator(".text")).to_have_text(CAPTION)
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("a person's words")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#said")).to_have_text(".txt of edited.jpg is saved.")
    expect(caption_of(page, "edited.jpg").locator(".text")).to_have_text("a person's words")
    expect(caption_of(page, "edited.jpg").get_by_text("by hand")).to_be_visible()
    assert (folder / "edited.txt").read_text() == "a person's words\n"
    assert page.evaluate("document.activeElement.textContent") == "Edit"


def test_edit_of_a_caption_that_changed_meanwhile_says_so_and_loses_nothing(
    browser: Browser, daemon: RunningDaemon, folder: Path
) -> None:
    sidecar = folder / "contested.txt"
    with visit(browser, daemon.url, refused=[409]) as page:
        page.get_by_role("button", name="Edit .txt of contested.jpg").click()
        area = page.get_by_role("textbox", name=".txt of contested.jpg")
        area.fill("mine")
        sidecar.write_text("somebody else's\n")
        page.get_by_role("button", name="Save").click()
        form = card_of(page, "contested.jpg").locator("form")
        expect(form).to_contain_text("Somebody changed it meanwhile.")
        expect(form).to_contain_text("somebody else's")
        expect(area).to_have_value("mine")
        assert sidecar.read_text() == "somebody else's\n"
        check_accessible(page)
        page.get_by_role("button", name="Swap").click()
        expect(area).to_have_value("somebody else's")
        page.get_by_role("button", name="Swap").click()
        page.get_by_role("button", name="Save").click()
        expect(caption_of(page, "contested.jpg").locator("> .text")).to_have_text("mine")
        assert sidecar.read_text() == "mine\n"


def test_failure_is_tried_again_when_told(page: Page, daemon: RunningDaemon) -> None:
    def tries() -> int:
        return daemon.text().count("text.jpg: not captioned")

    for button in ("Try text.jpg again", "Try all again"):
        before = tries()
        page.get_by_role("button", name=button).click()
        expect(page.locator("#said")).to_have_text("One picture is tried again.")
        wait_for(lambda before=before: tries() > before, what=f"{button} to do so")
        wait_for(lambda: daemon.get("/status")["failures"], what="it to be listed again")
        expect(page.get_by_role("button", name="Try text.jpg again")).to_be_visible()


def test_model_is_unloaded_and_loaded_by_its_button(page: Page, daemon: RunningDaemon) -> None:
    expect(page.locator("#model-state")).to_have_text("loaded")
    page.get_by_role("button", name="Unload").click()
    expect(page.locator("#model-state")).to_have_text("not loaded")
    assert daemon.engine_pid() is None
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#model-state")).to_have_text("loaded")
    assert daemon.engine_pid() is not None


def test_dropped_picture_is_captioned_and_its_objects_are_drawn_over_it(page: Page) -> None:
    choose(page)
    ask(page, "<CAPTION>")
    expect(page.locator("#answer")).to_contain_text(CAPTION)
    ask(page, "<OD>")
    expect(page.locator("#answer li")).to_have_count(2)
    expect(page.locator("#overlay text")).to_have_text(["red circle", "blue square"])

    def is_over_the_circle() -> bool:
        """What is above the picture may still move it between the two looks."""
        over, under = page.locator("#overlay .line").first.bounding_box(), page.locator("#preview").bounding_box()
        assert over is not None
        assert under is not None
        # The circle is drawn from (60, 150) to (250, 340) of 640 × 480.
        left_px, bottom_px = over["x"] - under["x"], over["y"] + over["height"] - under["y"]
        return left_px == pytest.approx(60 / 640 * under["width"], abs=20) and bottom_px == pytest.approx(
            340 / 480 * under["height"], abs=20
        )

    wait_for(is_over_the_circle, what="the box to lie on the circle")
    with page.expect_response("**/process_image") as answered:
        ask(page, "<OPEN_VOCABULARY_DETECTION>", "a blue square")  # It is refused without its text.
    assert answered.value.ok
    expect(page.locator("#answer .places, #answer .hint")).to_be_visible()
    check_accessible(page)


@pytest.mark.parametrize("size_px", [(90, 260), (1600, 200), (400, 3000)])
def test_what_is_drawn_over_a_picture_covers_it_whatever_its_shape(page: Page, size_px: tuple[int, int]) -> None:
    choose(page, content=encode_picture(draw_shapes(size_px, []).image, "JPEG"))
    wait_for(lambda: has_loaded(page.locator("#preview")), what="the picture")

    def is_covered() -> bool:
        shown, over = page.locator("#preview").bounding_box(), page.locator("#overlay").bounding_box()
        assert shown is not None
        ratio = shown["width"] / shown["height"]
        return over == pytest.approx(shown, abs=1) and ratio == pytest.approx(size_px[0] / size_px[1], rel=0.03)

    wait_for(is_covered, what="what is drawn to cover the picture")


def test_region_is_drawn_with_the_pointer_or_written(page: Page) -> None:
    expect(page.locator(".card")).to_have_count(len(NAMES))  # nothing moves any more
    choose(page)
    page.get_by_label("Prompt").select_option("<REGION_TO_DESCRIPTION>")
    wait_for(lambda: has_loaded(page.locator("#preview")), what="the picture")
    box = page.locator("#overlay").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    page.mouse.up()
    drawn = [int(part) for part in re.findall(r"<loc_(\d+)>", page.get_by_label("Region").input_value())]
    assert drawn == pytest.approx([250, 250, 750, 500], abs=6)
    page.get_by_label("Region").fill("<loc_0><loc_0><loc_999><loc_999>")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answer > *").first).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_picture_is_pasted_or_chosen_and_a_refusal_is_told(
    browser: Browser, daemon: RunningDaemon, folder: Path
) -> None:
    with visit(browser, daemon.url, refused=[400]) as page:
        expect(page.locator("#stage")).to_be_visible()
        page.evaluate(
            """() => {
              const pasted = new DataTransfer();
              pasted.items.add(new File(["no picture"], "pasted.png", { type: "image/png" }));
              document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: pasted }));
            }"""
        )
        expect(page.locator("#preview-name")).to_contain_text("pasted.png: this browser cannot show it")
        ask(page, "<CAPTION>")
        expect(page.locator("#answer")).to_contain_text("Invalid image data")
        page.locator("#file").set_input_files(folder / "plain.jpg")
        ask(page, "<CAPTION>")
        expect(page.locator("#answer")).to_contain_text(CAPTION)


def test_everything_is_reached_by_keyboard_and_what_has_the_focus_is_seen(page: Page) -> None:
    expect(page.locator(".card")).to_have_count(len(NAMES))
    reached: list[str] = []
    page.locator("body").evaluate("body => body.focus()")
    for _ in range(60):
        page.keyboard.press("Tab")
        told = page.evaluate(
            """() => {
              const focused = document.activeElement;
              const shown = focused.id === "file" ? document.getElementById("stage") : focused;
              const style = getComputedStyle(shown);
              const isSeen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
              const name = focused.getAttribute("aria-label") || focused.id || focused.textContent;
              return [focused.tagName, name, isSeen];
            }"""
        )
        if told[0] == "BODY":
            break
        assert told[2], f"{told[1]} has the focus, and does not show it"
        reached.append(told[1])
    assert {"file", "prompt", "theme", "Try text.jpg again", "Edit .txt of plain.jpg"} <= set(reached)
    assert reached[0] == "Skip to the latest pictures"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_scrolls_in_one_direction_and_either_theme_is_readable(
    browser: Browser, daemon: RunningDaemon, scheme: str
) -> None:
    options = {"viewport": PHONE, "color_scheme": scheme, "reduced_motion": "reduce", "has_touch": True}
    with visit(browser, daemon.url, **options) as page:
        expect(page.locator(".card")).to_have_count(len(NAMES))
        choose(page, LONG)
        ask(page, "<OD>")
        expect(page.locator("#overlay text")).to_have_count(2)
        name = page.locator("#overlay text").first.bounding_box()
        assert name is not None
        assert 12 <= name["height"] <= 20, "names are to be read on a phone too"
        page.get_by_role("button", name="Edit .txt of plain.jpg").click()
        assert not is_wider_than_its_window(page)
        assert (
            page.locator("#model-state").evaluate("pill => getComputedStyle(pill, '::before').animationName") == "none"
        )
        check_accessible(page)


def test_theme_can_be_chosen_and_is_kept(page: Page) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    expect(page.locator(".card").first).to_be_visible()
    button = page.get_by_role("button", name="Theme:")
    expect(button).to_have_text("Theme: auto")
    light = ground()
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    dark = ground()
    assert light != dark
    page.reload()
    expect(button).to_have_text("Theme: dark")
    assert ground() == dark


def test_wrong_configuration_is_told_of_until_it_is_right(page: Page, folder: Path) -> None:
    file = folder.parent / "florence-daemon.yaml"
    right = file.read_text()
    file.write_text("model: {nmae: demo}\n")
    expect(page.locator("#notice")).to_contain_text("The configuration is wrong")
    file.write_text(right)
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator(".card")).to_have_count(len(NAMES))


def test_daemon_that_does_not_answer_is_told_of_and_comes_back(browser: Browser, daemon: RunningDaemon) -> None:
    with visit(browser, daemon.url, is_cut_off=True) as page:
        expect(page.locator(".card").first).to_be_visible()
        page.route("**/overview", lambda route: route.abort())
        expect(page.locator("#notice")).to_contain_text("The daemon does not answer.")
        page.unroute("**/overview")
        expect(page.locator("#notice")).to_be_hidden()


def test_another_start_shows_the_same_to_who_signs_in_with_the_token_until_they_sign_out(
    browser: Browser, daemon: RunningDaemon, folder: Path, start_daemon: Callable[..., RunningDaemon]
) -> None:
    config = configuration(folder) | {"server": {"token": "correct-horse"}}
    another = start_daemon(config=json.dumps(config))
    with visit(browser, another.url, refused=[401]) as page:
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        check_accessible(page)
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-problem")).to_have_text("That is not the token.")
        page.keyboard.type("correct-horse")
        page.keyboard.press("Enter")
        expect(caption_of(page, "plain.jpg").locator(".text")).to_have_text(CAPTION)
        image = card_of(page, "plain.jpg").locator("img")
        wait_for(lambda: has_loaded(image), what="the thumbnail")
        assert page.context.cookies() == []
        page.reload()
        expect(page.locator(".card")).to_have_count(len(NAMES))
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        assert page.locator(".card").count() == 0
        page.reload()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
