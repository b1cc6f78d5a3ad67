"""An XMP packet: read a property of it whichever way it is written, change it in place, and leave all else as it is."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Callable, Iterable, Sequence

from florence_daemon.folders.xml_places import XML, BadXml, Element, Name, attribute_place, read_xml

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
META = "adobe:ns:meta/"
LANG = (XML, "lang")
ABOUT = (RDF, "about")
CONTAINERS = ((RDF, "Bag"), (RDF, "Seq"), (RDF, "Alt"))
DEFAULT = "x-default"
DC = "http://purl.org/dc/elements/1.1/"
LIGHTROOM = "http://ns.adobe.com/lightroom/1.0/"
DIGIKAM = "http://www.digikam.org/ns/1.0/"
OWN = "urn:florence-daemon:xmp:1.0/"
# How the namespaces are called that properties are added in, where the file has no name for them.
PREFIXES = {DC: "dc", LIGHTROOM: "lr", DIGIKAM: "digiKam", OWN: "florence"}

# More than any program writes; a packet is held in memory several times over.
MAX_BYTES = 16 * 2**20
# A line's end and the blanks before the next.
MOST_SPACE = 200
EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    f'<x:xmpmeta xmlns:x="{META}">\n <rdf:RDF xmlns:rdf="{RDF}">\n </rdf:RDF>\n</x:xmpmeta>\n'
    '<?xpacket end="w"?>\n'
).encode()

_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*\sencoding\s*=\s*["']([^"']+)""")
_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Packet:
    """A packet that is changed. Changes are noted, and made by `as_bytes`; what is read is what was there before."""

    def __init__(self, content: bytes) -> None:
        """Raises: BadXml when it cannot be read, or is no XMP."""
        if len(content) > MAX_BYTES:
            raise BadXml(f"it has {len(content):,} bytes; more than {MAX_BYTES:,} are not read")
        self._bom, self._encoding, self._content = _as_utf_8(content)
        root = read_xml(self._content)
        rdf = root if root.name == (RDF, "RDF") else root.first((RDF, "RDF"))
        if rdf is None:
            raise BadXml("it has no rdf:RDF, so it is no XMP")
        self._rdf = rdf
        self._changes: list[tuple[int, int, str]] = []
        self._new: list[tuple[Name, str]] = []
        self._descriptions = list(rdf.each((RDF, "Description")))
        self._prefixes = self._names_of_namespaces()

    def as_bytes(self) -> bytes:
        """The packet with all changes made, in its own encoding."""
        if self._new:
            self._add_description()
        pieces, at = [], 0
        for start, end, text in sorted(self._changes, key=lambda change: change[:2]):
            pieces += [self._content[at:start], text.encode()]
            at = end
        whole = b"".join([*pieces, self._content[at:]])
        return self._bom + whole.decode().encode(self._encoding)

    def values(self, name: Name) -> list[str]:
        """What a property holds: of a list its items, of anything else one. Raises: BadXml for a form nobody knows."""
        element, attribute = self._find(name)
        if element is not None:
            return [_value(item) for item in _items(element)]
        return [attribute] if attribute is not None else []

    def default_text(self, name: Name) -> str | None:
        """A text for all languages, else the first there is; None without any."""
        element, attribute = self._find(name)
        if element is None:
            return attribute
        items = list(_items(element))
        return next((_value(item) for item in items if _is_default(item)), _value(items[0]) if items else None)

    def set_text(self, name: Name, value: str) -> None:
        """Give a property one value."""
        element, attribute = self._find(name)
        if element is not None:
            self._replace_inside(element, _escaped(value))
        elif attribute is not None:
            self._remove_attributes(name)
            self._new.append((name, _escaped(value)))
        else:
            self._new.append((name, _escaped(value)))

    def set_default_text(self, name: Name, value: str) -> None:
        """Give a text for all languages, beside those for others."""
        element, _ = self._find(name)
        container = element.first(*CONTAINERS) if element is not None else None
        if element is None or container is None:
            self._remove(name)
            self._new.append((name, self._list("Alt", [value], f' xml:lang="{DEFAULT}"')))
            return
        item = next((item for item in container.children if _is_default(item)), None)
        if item is not None:
            self._replace_inside(item, _escaped(value))
        else:  # The first one is what programs show that do not choose.
            tag, declared = _rdf_tag(container, "li")
            item_text = f'<{tag}{declared} xml:lang="{DEFAULT}">{_escaped(value)}</{tag}>'
            self._insert(container, container.inner_start, self._space_before_items(container) + item_text)

    def remove_default_text(self, name: Name) -> None:
        """Take the text for all languages away, and the property with it where there is no other."""
        element, _ = self._find(name)
        container = element.first(*CONTAINERS) if element is not None else None
        if container is None or len(container.children) <= 1:
            self._remove(name)
        else:
            for item in container.children:
                if _is_default(item):
                    self._cut(item)

    def change_list(self, name: Name, kind: str, take: Callable[[str], bool], add: Sequence[str]) -> None:
        """Take values out of a list and add others at its end. kind: Bag or Seq, where there is none yet."""
        element, _ = self._find(name)
        container = element.first(*CONTAINERS) if element is not None else None
        if element is None or container is None:
            values = [value for value in self.values(name) if not take(value)] + list(add)
            if values != self.values(name):
                self._remove(name)
                if values:
                    self._new.append((name, self._list(kind, values)))
            return
        taken = [item for item in container.children if take(_value(item))]
        if len(taken) == len(container.children) and not add:
            self._remove(name)
            return
        for item in taken:
            self._cut(item)
        if add:
            tag, declared = _rdf_tag(container, "li")
            space = self._space_before_items(container)
            items = "".join(f"{space}<{tag}{declared}>{_escaped(value)}</{tag}>" for value in add)
            self._insert(container, container.children[-1].end if container.children else container.inner_start, items)

    def _find(self, name: Name) -> tuple[Element | None, str | None]:
        """The first element or attribute of this name."""
        for description in self._descriptions:
            element = description.first(name)
            if element is not None:
                return element, None
            if name in description.attributes:
                return None, description.attributes[name]
        return None, None

    def _remove(self, name: Name) -> None:
        for description in self._descriptions:
            for element in description.each(name):
                self._cut(element)
        self._remove_attributes(name)

    def _remove_attributes(self, name: Name) -> None:
        for description in self._descriptions:
            place = attribute_place(self._content, description, name) if name in description.attributes else None
            if place is not None:
                self._changes.append((*place, ""))

    def _cut(self, element: Element) -> None:
        """Take an element out, and the space before it."""
        start = element.start
        while self._content[start - 1 : start].isspace():
            start -= 1
        self._changes.append((start, element.end, ""))

    def _replace_inside(self, element: Element, text: str) -> None:
        if element.is_empty:
            self._insert(element, element.inner_start, text)
        elif self._content[element.inner_start : element.inner_end] != text.encode():
            self._changes.append((element.inner_start, element.inner_end, text))

    def _insert(self, element: Element, at: int, text: str) -> None:
        """Insert inside an element; one of a single tag gets two."""
        if element.is_empty:
            tag = self._content[element.start + 1 : element.inner_start].split(None, 1)[0].rstrip(b"/>").decode()
            self._changes.append((element.inner_start - 2, element.inner_start, f">{text}</{tag}>"))
        else:
            self._changes.append((at, at, text))

    def _space_before_items(self, container: Element) -> str:
        """How a list sets its items apart."""
        if not container.children:
            return ""
        return _as_space(self._content[container.inner_start : container.children[0].start], "")

    def _add_description(self) -> None:
        """Put new properties into a description of their own, with prefixes of their own, behind the others."""
        first = self._descriptions[0] if self._descriptions else None
        about = first.attributes.get(ABOUT, "") if first is not None else ""
        space = self._content[self._rdf.inner_start : first.start] if first is not None else b"\n  "
        indent = _as_space(space, "\n")
        names = self._prefixes
        spaces = dict.fromkeys(namespace for (namespace, _), _ in self._new)
        declared = "".join(f'{indent}    xmlns:{names[each]}="{each}"' for each in spaces)
        if self._rdf.scope.get(names[RDF]) != RDF:
            declared += f' xmlns:{names[RDF]}="{RDF}"'
        properties = "".join(
            f"{indent} <{names[space]}:{local}>{text}</{names[space]}:{local}>" for (space, local), text in self._new
        )
        tag = f"{names[RDF]}:Description"
        start = f'<{tag} {names[RDF]}:about="{_escaped(about, in_attribute=True)}"{declared}>'
        at = self._rdf.children[-1].end if self._rdf.children else self._rdf.inner_start
        self._insert(self._rdf, at, f"{indent}{start}{properties}{indent}</{tag}>")
        self._new = []

    def _names_of_namespaces(self) -> dict[str, str]:
        """The prefix of each namespace. exiv2 reads no file that has two for one, or one for two."""
        elements = [self._rdf, *self._descriptions, *(child for each in self._descriptions for child in each.children)]
        names: dict[str, str] = {}
        for scope in (element.scope for element in elements):
            for prefix, namespace in scope.items():
                if prefix:
                    names.setdefault(namespace, prefix)
        for namespace, wanted in ({RDF: "rdf"} | PREFIXES).items():
            taken = set(names.values())
            numbered = (f"{wanted}{number}" for number in itertools.count())
            free = next(name for name in itertools.chain([wanted], numbered) if name not in taken)
            names.setdefault(namespace, free)
        return names

    def _list(self, kind: str, values: Iterable[str], attribute: str = "") -> str:
        rdf = self._prefixes[RDF]
        items = "".join(f"<{rdf}:li{attribute}>{_escaped(value)}</{rdf}:li>" for value in values)
        return f"<{rdf}:{kind}>{items}</{rdf}:{kind}>"


def clean(text: str) -> str:
    """A text as XML gives it back: its lines end in one way, and what XML cannot hold is gone."""
    return _NO_CHARACTER.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _as_utf_8(content: bytes) -> tuple[bytes, str, bytes]:
    """A byte order mark, the encoding, and the content in UTF-8. Raises: BadXml."""
    for bom, encoding in _UTF_16.items():
        if content.startswith(bom):
            try:
                return bom, encoding, content[len(bom) :].decode(encoding).encode()
            except UnicodeError as error:
                raise BadXml(f"its UTF-16 is broken: {error}") from None
    bom = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
    declared = _DECLARED.match(content, len(bom))
    if declared is not None and declared[1].lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise BadXml(f"its encoding {declared[1][:40]!r} is not read; save it as UTF-8")
    return bom, "utf-8", content[len(bom) :]


def _items(element: Element) -> Iterable[Element]:
    """The items of a property; itself, when it is no list. Raises: BadXml."""
    container = element.first(*CONTAINERS)
    if container is not None:
        return container.each((RDF, "li"))
    if element.children or any(namespace == RDF for namespace, _ in element.attributes):
        raise BadXml(f"its {element.name[1]} is written in a form that is not known here")
    return [element] if element.text.strip() else []


def _value(item: Element) -> str:
    """An item's text; one with qualifiers keeps it in rdf:value."""
    held = next((child for each in (item, *item.children) for child in each.each((RDF, "value"))), None)
    return (held or item).text.strip()


def _as_space(content: bytes, other: str) -> str:
    """What sets lines apart, if it is only that, and no more than lines need: it is repeated before each new one."""
    return content.decode() if content.isspace() and len(content) <= MOST_SPACE else other


def _is_default(item: Element) -> bool:
    return item.attributes.get(LANG, "").lower() == DEFAULT


def _rdf_tag(element: Element, local: str) -> tuple[str, str]:
    """How an element of RDF is called in there, and what must be declared for it."""
    prefix = next((prefix for prefix, namespace in element.scope.items() if namespace == RDF), None)
    if prefix is None:
        return f"rdf:{local}", f' xmlns:rdf="{RDF}"'
    return (f"{prefix}:{local}" if prefix else local), ""


def _escaped(text: str, *, in_attribute: bool = False) -> str:
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&quot;") if in_attribute else text
