"""What the page is served, to whom, and with which rules for the browser."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from florence_daemon.http.contract import PAGE_FILES, PAGE_PATHS
from florence_daemon.http.page import DIRECTORY
from florence_daemon.http.pictures import id_of, path_of
from florence_daemon.tasks import prompt_tokens
from tests.conftest import FakeEngine
from tests.http.api import Api, FakeGallery, error_of, serving

TOKEN = "correct-horse-battery"
PICTURE = f"/pictures/{id_of(FakeGallery.path)}"
DATA = ("/overview", "/tasks", "/pictures", PICTURE, f"{PICTURE}/thumbnail")
CROSS = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


@pytest.fixture
def guarded(engine: FakeEngine) -> Iterator[Api]:
    with serving(engine, token=TOKEN) as api:
        yield api


def test_every_file_of_the_page_is_served_and_no_other(api: Api) -> None:
    files = {path.name for path in DIRECTORY.iterdir() if path.suffix not in (".py", "") and not path.is_dir()}
    assert files == set(PAGE_FILES)
    for path in PAGE_PATHS:
        name = path.rpartition("/")[2] or "index.html"
        response = api.http.get(path)
        assert response.content == (DIRECTORY / name).read_bytes()
        assert response.headers["content-type"] == PAGE_FILES[name]
    for path in ("/page/", "/page/__init__.py", "/page/../page/main.js", "/page/%2e%2e/daemon.py", "/page/x.js"):
        assert api.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).status == 404


def test_files_are_asked_for_again_and_sent_once(api: Api) -> None:
    first = api.http.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = api.http.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.http.get("/page/main.js", headers={"If-None-Match": '"another"'}).status_code == 200
    assert api.http.head("/").status_code == 200


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_browser_is_told_to_let_nothing_in_from_elsewhere(api: Api, path: str) -> None:
    headers = api.http.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    text = (DIRECTORY / (path.rpartition("/")[2] or "index.html")).read_text(encoding="utf-8")
    assert not [word for word in ("https://", "innerHTML", "style=", "onclick=", "eval(") if word in text]


def test_page_itself_needs_no_token_and_everything_that_it_shows_does(guarded: Api) -> None:
    for path in PAGE_PATHS:
        assert guarded.http.get(path).status_code == 200
    for path in DATA:
        assert guarded.http.get(path).status_code == 401
        assert guarded.http.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    edit = {"ext": ".txt", "text": "mine", "version": None}
    assert guarded.http.put(f"{PICTURE}/caption", json=edit).status_code == 401
    assert guarded.gallery.edits == []


def test_other_sites_may_link_to_the_page_and_nothing_more(api: Api) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert api.http.get("/", headers=link).status_code == 200
    assert api.http.get("/", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    for path in DATA:
        assert api.http.get(path, headers=CROSS).status_code == 403
        assert api.http.get(path, headers={"Host": "evil.example"}).status_code == 403
    edit = {"ext": ".txt", "text": "mine", "version": None}
    assert api.http.put(f"{PICTURE}/caption", json=edit, headers=CROSS).status_code == 403
    form = b"ext=.txt&text=mine"
    assert api.http.put(f"{PICTURE}/caption", content=form, headers={"Content-Type": "text/plain"}).status_code == 415
    assert api.gallery.edits == []


def test_what_is_asked_for_every_few_seconds_is_sent_when_it_is_new(api: Api) -> None:
    for path in ("/overview", "/pictures", "/tasks"):
        first = api.http.get(path)
        assert api.http.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    known = api.http.get("/pictures").headers["etag"]
    api.gallery.text = "another caption"
    changed = api.http.get("/pictures", headers={"If-None-Match": known})
    assert changed.json()["pictures"][0]["captions"][0]["text"] == "another caption"


def test_tasks_say_what_they_need(api: Api) -> None:
    tasks = {task["prompt"]: (task["needs"], task["answer"]) for task in api.http.get("/tasks").json()}
    assert list(tasks) == prompt_tokens()
    assert tasks["<OD>"] == ("text or nothing", "boxes")


def test_pictures_come_with_their_captions_and_thumbnails(api: Api) -> None:
    (shown,) = api.http.get("/pictures").json()["pictures"]
    assert shown["path"] == "/pictures/a.jpg"
    assert shown["name"] == "a.jpg"
    assert shown["captioned_s"] == 7.0
    assert api.http.get(f"/pictures/{shown['id']}").json() == shown | {"captioned_s": None}
    small = api.http.get(f"/pictures/{shown['id']}/thumbnail?v={shown['thumbnail']}")
    assert small.headers["content-type"] == "image/webp"
    assert small.headers["cache-control"].startswith("private")
    known = api.http.get(f"/pictures/{shown['id']}/thumbnail", headers={"If-None-Match": small.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert "from 1 to 240" in error_of(api.http.get("/pictures?limit=241"))
    assert api.http.get("/pictures?limit=x").status_code == 422


def test_edit_is_passed_on_and_a_conflict_is_told(api: Api) -> None:
    address = f"{PICTURE}/caption"
    edit = {"ext": ".txt", "text": "mine", "version": FakeGallery.version}
    assert api.http.put(address, json=edit).json()["captions"][0]["ext"] == ".txt"
    assert api.gallery.edits == [(".txt", "mine", FakeGallery.version)]
    conflict = api.http.put(address, json=edit | {"version": "1" * 32})
    assert conflict.status_code == 409
    assert "was changed meanwhile" in error_of(conflict)
    wrong = {
        "an empty caption stops a trainer": {"text": " \n"},
        "text: a string": {"text": 5},
        "not valid Unicode": {"text": "\ud800"},
        "at most 16000": {"text": "x" * 16001},
        "not a caption's ending": {"ext": "../x"},
        "not what a picture's caption has": {"version": "x"},
        "is not a member": {"path": "/etc/passwd"},
    }
    for reason, members in wrong.items():
        content = json.dumps(edit | members)
        response = api.http.put(address, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 422
        assert reason in error_of(response)
    assert len(api.gallery.edits) == 1


def test_only_ids_stand_for_paths(api: Api) -> None:
    odd = b"/srv/\xff.jpg".decode(errors="surrogateescape")
    assert path_of(id_of(odd)) == odd
    foreign = base64.urlsafe_b64encode(b"/etc/passwd").decode().rstrip("=")
    for id in (foreign, id_of("/a\0b"), "x", "!", "a" * 4000, id_of(FakeGallery.path) + "A", "%2e%2e"):
        assert api.http.get(f"/pictures/{id}").status_code == 404
        assert api.http.get(f"/pictures/{id}/thumbnail").status_code == 404
