"""Read untrusted XML into elements that know where they stand in it, so that a change leaves all else as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

XML = "http://www.w3.org/XML/1998/namespace"
Name = tuple[str, str]
"""A namespace, and a name in it."""

# Beyond what any program writes into metadata, and what a hostile file would need to take memory by the gigabyte.
MAX_DEPTH = 200
MAX_ELEMENTS = 50_000
MAX_NAMESPACES = 500
# Letters of the name by which a file calls a namespace, which each new element has twice.
MAX_PREFIX = 100
# Equals signs, of which each attribute has one: a tag may hold millions of attributes. Text has some too.
MAX_EQUALS_SIGNS = 200_000
# Between a namespace and the name in it: no XML holds this sign.
_BORDER = "\x1f"
_QUOTE_OR_END = re.compile(rb"""["'>]""")
_TAG_NAME = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE = re.compile(rb"""\s+([^\s=/>"']+)\s*=\s*("[^"]*"|'[^']*')""")


class BadXml(ValueError):
    """This is no XML, or it holds what no honest file needs."""


@dataclass(eq=False)
class Element:
    """An element and its place. start, end: its bytes, tags and all; inner_start, inner_end: those between its tags.

    is_empty: it has a single tag, `<x/>`, and so no inside. scope: prefixes that hold inside, and their namespaces.
    """

    name: Name
    attributes: dict[Name, str]
    scope: dict[str, str]
    start: int
    inner_start: int
    is_empty: bool
    inner_end: int = 0
    end: int = 0
    pieces: list[str] = field(default_factory=list)
    children: list[Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All characters directly in it."""
        return "".join(self.pieces)

    def each(self, *names: Name) -> Iterator[Element]:
        """The children of these names."""
        return (child for child in self.children if child.name in names)

    def first(self, *names: Name) -> Element | None:
        """The first child of one of these names."""
        return next(self.each(*names), None)


def read_xml(content: bytes) -> Element:
    """Read a document in UTF-8 and return its root.

    A document type is refused, since entities are declared there: ten lines of them unfold to gigabytes, and others
    name files of this machine.

    Raises: BadXml.
    """
    return _Reader(content).read()


def attribute_place(content: bytes, element: Element, name: Name) -> tuple[int, int] | None:
    """Where an attribute stands in its element's tag, the space before it included."""
    named = _TAG_NAME.match(content, element.start)
    at = named.end() if named is not None else element.inner_start
    while (match := _ATTRIBUTE.match(content, at, element.inner_start)) is not None:
        prefix, _, local = match[1].decode().rpartition(":")
        if prefix and (element.scope.get(prefix), local) == name:
            return match.start(), match.end()
        at = match.end()
    return None


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._open: list[Element] = []
        self._root: Element | None = None
        self._count = 0
        self._namespaces = 0
        self._scopes: list[dict[str, str]] = [{"xml": XML}]
        self._declared: dict[str, str] = {}
        self._parser = expat.ParserCreate("utf-8", _BORDER)
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse
        self._parser.StartNamespaceDeclHandler = self._declare
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._take_text

    def read(self) -> Element:
        if self._content.count(b"=") > MAX_EQUALS_SIGNS:
            raise BadXml(f"it has more than {MAX_EQUALS_SIGNS} equals signs")
        try:
            self._parser.Parse(self._content, True)
        except expat.ExpatError as error:
            raise BadXml(str(error)) from None
        if self._root is None:
            raise BadXml("it has no element")
        return self._root

    def _refuse(self, *_: object) -> None:
        raise BadXml("it has a document type or entities, which are not read")

    def _declare(self, prefix: str | None, namespace: str | None) -> None:
        self._namespaces += 1
        if self._namespaces > MAX_NAMESPACES or len(prefix or "") > MAX_PREFIX:
            raise BadXml(f"it declares more than {MAX_NAMESPACES} namespaces, or one of more than {MAX_PREFIX} letters")
        self._declared[prefix or ""] = namespace or ""

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise BadXml(f"it has more than {MAX_ELEMENTS} elements, or more than {MAX_DEPTH} in each other")
        start = self._parser.CurrentByteIndex
        end = _end_of_tag(self._content, start)
        self._scopes.append(self._scopes[-1] | self._declared if self._declared else self._scopes[-1])
        self._declared = {}
        values = {_split(key): value for key, value in attributes.items()}
        is_empty = self._content[end - 2 : end] == b"/>"
        element = Element(_split(name), values, self._scopes[-1], start, end, is_empty)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, _: str) -> None:
        self._scopes.pop()
        element = self._open.pop()
        if element.is_empty:
            element.inner_end = element.end = element.inner_start
        else:
            element.inner_end = self._parser.CurrentByteIndex
            element.end = self._content.index(b">", element.inner_end) + 1

    def _take_text(self, text: str) -> None:
        self._open[-1].pieces.append(text)


def _end_of_tag(content: bytes, at: int) -> int:
    """Where a tag ends that begins at `at`; in its values there may be anything. Raises: BadXml."""
    while (sign := _QUOTE_OR_END.search(content, at)) is not None:
        if sign[0] == b">":
            return sign.end()
        at = content.find(sign[0], sign.end()) + 1
        if not at:
            break
    raise BadXml("a tag has no end")


def _split(name: str) -> Name:
    namespace, _, local = name.rpartition(_BORDER)
    return namespace, local
