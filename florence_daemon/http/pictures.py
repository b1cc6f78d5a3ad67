"""The latest pictures over HTTP: their captions, their thumbnails, and edits by a person."""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import falcon

from florence_daemon.errors import UnknownPath
from florence_daemon.http.page import is_known, send
from florence_daemon.http.page_schemas import EXTENSION, MOST_CHARACTERS, MOST_PICTURES, PICTURES, VERSION
from florence_daemon.http.question import read_json
from florence_daemon.logs import printable

# The address of a thumbnail changes with its picture, so a browser need not ask again.
FOR_A_WEEK = "private, max-age=604800, immutable"


@dataclass(frozen=True)
class Caption:
    """A sidecar of text.

    ext: with its dot. version: stands for its bytes; an edit must bring it. by_person: this program did not write it.
    problem: why its text cannot be shown, nor edited; empty when it can.
    """

    ext: str
    text: str
    version: str | None
    by_person: bool
    problem: str = ""


@dataclass(frozen=True)
class Shown:
    """An image and its captions. captioned_s: seconds since the epoch. thumbnail: stands for the picture as it is."""

    path: str
    folder: str
    captions: tuple[Caption, ...]
    thumbnail: str
    captioned_s: float | None = None


class Gallery(Protocol):
    """What these resources need of `florence_daemon.gallery.Gallery`; paths are absolute."""

    def latest(self, count: int) -> list[Shown]:
        """The images captioned last."""

    def picture(self, path: str) -> Shown:
        """One image. Raises: UnknownPath, FolderBlocked."""

    def thumbnail(self, path: str, version: str | None = None) -> tuple[str, bytes | None]:
        """What stands for a picture, and its thumbnail unless that is `version`. Raises: UnknownPath, PictureError."""

    def edit(self, path: str, ext: str, text: str, version: str | None) -> Shown:
        """Write a caption. Raises: SidecarChanged, UnknownPath, FolderBlocked."""


class PicturesResource:
    """`GET /pictures`: the images captioned last."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with `limit` of them at most, or 304 when nothing has changed."""
        try:
            limit = req.get_param_as_int("limit", min_value=1, max_value=MOST_PICTURES, default=PICTURES)
        except falcon.HTTPInvalidParam:
            text = f"limit: {req.get_param('limit')!r:.80} is not a number from 1 to {MOST_PICTURES}"
            raise falcon.HTTPUnprocessableEntity(description=text) from None
        send(req, resp, {"pictures": [as_media(each) for each in self._gallery.latest(limit)]})

    on_head = on_get


class PictureResource:
    """`GET /pictures/ID`: one of them."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    def on_get(self, req: falcon.Request, resp: falcon.Response, id: str) -> None:
        """Answer with it as it is now."""
        send(req, resp, as_media(self._gallery.picture(path_of(id))))

    on_head = on_get


class ThumbnailResource:
    """`GET /pictures/ID/thumbnail`: it made small, as WebP."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    def on_get(self, req: falcon.Request, resp: falcon.Response, id: str) -> None:
        """Answer with it; the member `v` of the query is what the address changes by."""
        known = next((str(each) for each in req.if_none_match or ()), None)
        version, content = self._gallery.thumbnail(path_of(id), known)
        resp.set_headers({"Cache-Control": FOR_A_WEEK, "X-Content-Type-Options": "nosniff"})
        if not is_known(req, resp, version):
            resp.content_type, resp.data = "image/webp", content


class CaptionResource:
    """`PUT /pictures/ID/caption`: a person's text for one of its sidecars."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    def on_put(self, req: falcon.Request, resp: falcon.Response, id: str) -> None:
        """Answer with the picture as it is then; 409 when the sidecar is not what the person saw."""
        ext, text, version = _read_edit(req)
        resp.media = as_media(self._gallery.edit(path_of(id), ext, text, version))


def as_media(shown: Shown) -> dict[str, Any]:
    """A picture for JSON; names that are no text come in a printable form, and whole in the id."""
    members = asdict(shown) | {"id": id_of(shown.path), "name": printable(os.path.basename(shown.path))}
    return members | {"path": printable(shown.path), "folder": printable(shown.folder)}


def id_of(path: str) -> str:
    """What stands for a path in an address; names need not be text."""
    return base64.urlsafe_b64encode(os.fsencode(path)).decode("ascii").rstrip("=")


def path_of(id: str) -> str:
    """The path that an id stands for. Raises: UnknownPath."""
    try:
        raw = base64.b64decode(id + "=" * (-len(id) % 4), altchars=b"-_", validate=True)
        path = os.fsdecode(raw)
    except (binascii.Error, ValueError):
        raise UnknownPath(f"{id:.80}: stands for no picture") from None
    if b"\0" in raw or id_of(path) != id:
        raise UnknownPath(f"{id:.80}: stands for no picture")
    return path


def _read_edit(req: falcon.Request) -> tuple[str, str, str | None]:
    """The members ext, text and version. Raises: falcon.HTTPError (400, 415, 422)."""
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise falcon.HTTPUnsupportedMediaType(description=f"Content-Type {kind or 'is missing'}: application/json")
    members = read_json(req)
    unknown = next((name for name in members if name not in ("ext", "text", "version")), None)
    if unknown is not None:
        raise _refused(f"{unknown!r:.80} is not a member; ext, text and version are")
    ext, text, version = members.get("ext"), members.get("text"), members.get("version")
    if not isinstance(ext, str) or not re.fullmatch(EXTENSION, ext):
        raise _refused(f"ext: {ext!r:.80} is not a caption's ending, such as .txt")
    if version is not None and not (isinstance(version, str) and re.fullmatch(VERSION, version)):
        raise _refused(f"version: {version!r:.80} is not what a picture's caption has, nor null")
    return ext, _check_text(text), version


def _check_text(text: Any) -> str:
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise _refused(f"text: a string of at most {MOST_CHARACTERS} characters is expected")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused("text: is not valid Unicode") from None
    if not text.strip():
        raise _refused("text: an empty caption stops a trainer; remove the file instead")
    return text


def _refused(text: str) -> falcon.HTTPUnprocessableEntity:
    return falcon.HTTPUnprocessableEntity(description=text)
