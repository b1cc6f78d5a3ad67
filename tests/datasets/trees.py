"""A folder of pictures and captions, as somebody might have it who wants to train with it."""

from __future__ import annotations

from pathlib import Path

from florence_daemon.datasets.samples import Tree
from tests.pictures import jpeg, rotated_jpeg, write_transparent_png

CAPTIONS = {
    "a": "a red circle and a blue square",
    "b.c": "naïve “quotes”, 出口 and, commas",
    "sub/a": "the same name in another folder",
    "sub/deep/turned": "upright by EXIF alone",
}


def write_tree(root: Path) -> Path:
    """Four pictures with captions, of which one has tags, and one picture without."""
    (root / "sub" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "sub/a.jpeg", "sub/without.jpg"):
        (root / name).write_bytes(jpeg())
    (root / "sub" / "deep" / "turned.jpg").write_bytes(rotated_jpeg())
    write_transparent_png(root / "b.c.png")
    for stem, text in CAPTIONS.items():
        (root / f"{stem}.txt").write_text(text + "\n", encoding="utf-8")
    (root / "a.tag").write_text("red circle, blue square\n")
    return root


def tree_of(root: Path) -> Tree:
    return Tree(root)
