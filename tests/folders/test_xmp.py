"""XMP: merged into what people and their programs wrote, nothing of theirs lost; exiftool and exiv2 are the judges."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence_daemon.folders.xml_places import MAX_ELEMENTS, MAX_EQUALS_SIGNS, BadXml
from florence_daemon.folders.xmp import Words, is_ours, merge
from florence_daemon.folders.xmp_packet import DC, DIGIKAM, LIGHTROOM, RDF, Packet

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
needs_exiv2 = pytest.mark.skipif(shutil.which("exiv2") is None, reason="exiv2 is not installed")

WORDS = Words("A cat on a mat", ("cat", "mat", "indoors"), "demo")
NEWER = Words("A tabby on a rug", ("cat", "rug"), "another")

DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:darktable="http://darktable.sf.net/"
    xmlns:dc="{DC}"
    xmlns:lr="{LIGHTROOM}"
   exif:DateTimeOriginal="2023:05:01 10:11:12"
   xmp:Rating="4"
   xmpMM:DerivedFrom="a.jpg"
   darktable:xmp_version="5"
   darktable:raw_params="0">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Minka</rdf:li>
     <rdf:li>darktable|exported</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>Pets|Minka</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="exposure"
      darktable:params="00000000"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

DIGIKAM_FILE = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 5.6.0">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="" xmlns:digiKam="{DIGIKAM}" xmlns:dc="{DC}"
    xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0" digiKam:PickLabel="1">
   <digiKam:TagsList>
    <rdf:Seq>
     <rdf:li>Pets/Minka</rdf:li>
     <rdf:li>Holiday</rdf:li>
    </rdf:Seq>
   </digiKam:TagsList>
   <dc:subject><rdf:Bag><rdf:li>Minka</rdf:li><rdf:li>Holiday</rdf:li></rdf:Bag></dc:subject>
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">Minka &amp; her mat</rdf:li>
     <rdf:li xml:lang="de-DE">Minka auf ihrer Matte</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""

# Adobe's compact form: whatever is simple is an attribute, and prefixes may be any.
LIGHTROOM_FILE = f"""<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='{RDF}'>
\t<rdf:Description rdf:about='' xmlns:d='{DC}' xmlns:crs='http://ns.adobe.com/camera-raw-settings/1.0/'
\t  crs:Version='15.1' crs:Exposure2012='+0.35' d:format='image/jpeg' d:subject='Minka'/>
\t<!-- by hand -->
</rdf:RDF></x:xmpmeta>"""

BARE = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'

# By hand, and right; but exiv2 knows rdf by no other name.
OTHER_NAMES = DIGIKAM_FILE.replace("rdf:", "r:").replace(":rdf=", ":r=")

JUDGED = {"darktable": DARKTABLE, "digiKam": DIGIKAM_FILE, "Lightroom": LIGHTROOM_FILE, "bare": BARE}
LAYOUTS = JUDGED | {"other names": OTHER_NAMES}


def merged(existing: str | bytes | None, words: Words = WORDS, *, may_replace: bool = False) -> bytes:
    content = existing.encode() if isinstance(existing, str) else existing
    return merge(content, words, may_replace=may_replace)


def values(content: bytes, namespace: str, name: str) -> list[str]:
    return Packet(content).values((namespace, name))


def subjects(content: bytes) -> list[str]:
    return values(content, DC, "subject")


def description(content: bytes) -> str | None:
    return Packet(content).default_text((DC, "description"))


def test_new_packet_says_everything_once() -> None:
    content = merged(None)
    assert description(content) == "A cat on a mat"
    assert subjects(content) == ["cat", "mat", "indoors"]
    assert values(content, LIGHTROOM, "hierarchicalSubject") == ["cat", "mat", "indoors"]
    assert values(content, DIGIKAM, "TagsList") == ["cat", "mat", "indoors"]
    assert is_ours(content)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_the_same_again_changes_nothing(layout: str) -> None:
    once = merged(LAYOUTS[layout])
    assert is_ours(once)
    assert not is_ours(LAYOUTS[layout].encode())
    assert merged(once) == once


@pytest.mark.parametrize("layout", ["darktable", "digiKam", "Lightroom", "other names"])
def test_without_our_words_it_is_letter_by_letter_what_it_was(layout: str) -> None:
    text = merged(LAYOUTS[layout]).decode()
    ours = r'\s*<(r|rdf):Description \w+:about=""[^>]*xmlns:florence(?s:.*?)</\1:Description>'
    text = re.sub(ours + r"|\s*<(r|rdf):li>(cat|mat|indoors)</\2:li>", "", text)
    # A list has no place in an attribute: that one went into an element.
    assert text == LAYOUTS[layout].replace(" d:subject='Minka'", "")


@pytest.mark.parametrize("layout", ["darktable", "digiKam", "Lightroom"])
def test_persons_keywords_stay_first_and_ours_come_behind(layout: str) -> None:
    before = subjects(LAYOUTS[layout].encode())
    assert "Minka" in before
    assert subjects(merged(LAYOUTS[layout])) == [*before, "cat", "mat", "indoors"]


def test_persons_levels_stay() -> None:
    content = merged(DARKTABLE)
    assert values(content, LIGHTROOM, "hierarchicalSubject") == ["Pets|Minka", "cat", "mat", "indoors"]
    assert values(merged(DIGIKAM_FILE), DIGIKAM, "TagsList") == ["Pets/Minka", "Holiday", "cat", "mat", "indoors"]


def test_new_items_stand_in_lines_of_their_own_where_the_others_do() -> None:
    assert "     <rdf:li>darktable|exported</rdf:li>\n     <rdf:li>cat</rdf:li>\n" in merged(DARKTABLE).decode()


def test_persons_description_stays_unless_it_may_be_replaced_and_other_languages_always() -> None:
    assert description(merged(DIGIKAM_FILE)) == "Minka & her mat"
    replaced = merged(DIGIKAM_FILE, may_replace=True)
    assert description(replaced) == "A cat on a mat"
    assert "Minka auf ihrer Matte" in replaced.decode()


def test_keyword_that_a_person_has_in_another_case_is_not_added_and_never_dropped() -> None:
    theirs = DARKTABLE.replace("Minka</rdf:li>\n     <rdf:li>darktable", "Cat</rdf:li>\n     <rdf:li>darktable")
    content = merged(theirs)
    assert subjects(content) == ["Cat", "darktable|exported", "mat", "indoors"]
    assert subjects(merged(content, Words(None, (), "another"))) == ["Cat", "darktable|exported"]


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_our_words_are_replaced_by_newer_ones_and_nobody_elses(layout: str | None) -> None:
    before = subjects(LAYOUTS[layout].encode()) if layout else []
    content = merged(merged(LAYOUTS[layout] if layout else None), NEWER)
    assert subjects(content) == [*before, "cat", "rug"]
    assert description(content) == ("Minka & her mat" if layout in ("digiKam", "other names") else "A tabby on a rug")
    assert {"mat", "indoors"}.isdisjoint(values(content, LIGHTROOM, "hierarchicalSubject"))
    assert {"mat", "indoors"}.isdisjoint(values(content, DIGIKAM, "TagsList"))


def test_description_that_a_person_changed_stays_and_one_whose_lines_were_folded_is_ours() -> None:
    ours = merged(None).decode()
    changed = ours.replace('x-default">A cat on a mat', 'x-default">Minka on her mat')
    assert description(merged(changed, NEWER)) == "Minka on her mat"
    folded = ours.replace('x-default">A cat on a mat', 'x-default">A cat\n   on a mat')
    assert description(merged(folded, NEWER)) == "A tabby on a rug"


def test_keyword_of_ours_that_a_person_took_out_does_not_come_back() -> None:
    content = merged(None).decode().replace("<rdf:li>mat</rdf:li>", "", 1)
    assert subjects(content.encode()) == ["cat", "indoors"]
    for _ in range(2):
        content = merged(content, Words(None, ("mat", "cat", "rug"), "another")).decode()
        assert subjects(content.encode()) == ["cat", "rug"]


def test_all_that_was_ours_can_go() -> None:
    content = merged(merged(DARKTABLE), Words(None, (), "demo"))
    assert subjects(content) == ["Minka", "darktable|exported"]
    assert values(content, DIGIKAM, "TagsList") == []
    assert description(content) is None


def test_keyword_that_would_become_levels_is_in_the_flat_list_alone() -> None:
    content = merged(None, Words(None, ("w/ hat", "a|b"), "demo"))
    assert subjects(content) == ["w/ hat", "a|b"]
    assert values(content, DIGIKAM, "TagsList") == ["a|b"]
    assert values(content, LIGHTROOM, "hierarchicalSubject") == ["w/ hat"]


def test_description_in_an_attribute_or_without_languages_counts_as_one() -> None:
    for there in (
        f'<rdf:Description rdf:about="" xmlns:dc="{DC}" dc:description="mine"/>',
        f'<rdf:Description rdf:about="" xmlns:dc="{DC}"><dc:description>mine</dc:description></rdf:Description>',
        f'<rdf:Description xmlns:dc="{DC}"><dc:description><rdf:Alt><rdf:li xml:lang="en">mine</rdf:li></rdf:Alt>'
        "</dc:description></rdf:Description>",
    ):
        content = f'<rdf:RDF xmlns:rdf="{RDF}">{there}</rdf:RDF>'
        assert description(merged(content)) == "mine"
        assert description(merged(content, may_replace=True)) == "A cat on a mat"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_file_keeps_its_encoding_and_its_byte_order_mark(encoding: str) -> None:
    there = BARE.encode(encoding)
    content = merged(there)
    assert content[:2] == there[:2]
    assert "A cat on a mat" in content.decode(encoding)
    assert merged(content) == content


def rdf(inside: str) -> bytes:
    return f'<rdf:RDF xmlns:rdf="{RDF}">{inside}</rdf:RDF>'.encode()


def test_file_has_one_name_for_each_namespace_and_one_namespace_for_each_name() -> None:
    assert b'xmlns:dc="' not in merged(LIGHTROOM_FILE)
    other = BARE.replace("<rdf:RDF ", '<rdf:RDF xmlns:dc="urn:mine" ')
    assert subjects(merged(other)) == ["cat", "mat", "indoors"]
    assert b"<dc:" not in merged(other)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + BARE
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + BARE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not xml",
        DARKTABLE[:300].encode(),
        b"<a/>",
        BOMB.encode(),
        OUTSIDE.encode(),
        b'<?xml version="1.0" encoding="ISO-8859-1"?>' + BARE.encode(),
        b"\xff\xfe\x00",
        BARE.encode() + b"\xff",
        rdf("<a>" * 300 + "</a>" * 300),
        rdf("<a/>" * (MAX_ELEMENTS + 1)),
        rdf("".join(f'<a xmlns:n{number}="u:{number}"/>' for number in range(600))),
        rdf(f'<rdf:Description xmlns:dc="{DC}"><dc:subject rdf:parseType="Resource"/></rdf:Description>'),
        f'<{"r" * 101}:RDF xmlns:{"r" * 101}="{RDF}"/>'.encode(),
        rdf("<a" + "".join(f" a{number}=''" for number in range(MAX_EQUALS_SIGNS)) + "/>"),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_cannot_be_read_is_refused(content: bytes) -> None:
    with pytest.raises(BadXml):
        merge(content, WORDS)


def test_tag_of_a_megabyte_takes_not_much_more() -> None:
    content = rdf(f"<rdf:Description{' ' * 1_000_000}a='>\"' b=\">'/\"/>")
    tracemalloc.start()
    try:
        assert merged(content, WORDS).startswith(content.removesuffix(b"</rdf:RDF>"))
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_space_of_megabytes_is_not_put_before_each_new_line() -> None:
    space = " " * 1_000_000
    bag = f'<dc:subject xmlns:dc="{DC}"><rdf:Bag>{space}<rdf:li>mine</rdf:li></rdf:Bag></dc:subject>'
    content = rdf(f"{space}<rdf:Description>{bag}</rdf:Description>")
    found = merged(content, WORDS)
    assert subjects(found) == ["mine", *WORDS.keywords]
    assert len(found) < len(content) + 10_000


def test_any_number_of_names_may_be_taken_for_other_namespaces() -> None:
    names = ["dc", *(f"dc{number}" for number in range(120))]
    declared = "".join(f" xmlns:{name}='u:{name}'" for name in names)
    content = merged(rdf(f"<rdf:Description{declared}/>"), WORDS)
    assert f'xmlns:dc120="{DC}"'.encode() in content


TEXTS = st.text(max_size=30)


@given(TEXTS, st.lists(TEXTS, max_size=6), st.sampled_from(sorted(LAYOUTS)))
def test_any_words_come_back_as_they_were_said_and_nothing_breaks_out(text: str, words: list[str], layout: str) -> None:
    told = Words(text, tuple(words), "demo")
    content = merged(LAYOUTS[layout].replace("Minka", "\u2063"), told)
    assert merged(content, told) == content
    assert len(Packet(content).values((DC, "subject"))) <= len(words) + 2
    assert merged(content, Words(None, (), "demo")).count(b"<rdf:li") <= content.count(b"<rdf:li")


# The judges.


def exiftool(path: Path) -> dict[str, Any]:
    ran = subprocess.run(["exiftool", "-json", "-struct", "-G1", "-a", str(path)], capture_output=True, check=True)
    (found,) = json.loads(ran.stdout)
    assert "ExifTool:Error" not in found, found
    assert "ExifTool:Warning" not in found, found
    return dict(found)


def exiv2(path: Path) -> dict[str, list[str]]:
    """Each property and its values, as exiv2 reads a sidecar."""
    ran = subprocess.run(["exiv2", "-PXkt", "print", str(path)], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    found: dict[str, list[str]] = {}
    for line in ran.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value.strip())
    return found


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(content)
    return path


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@needs_exiftool
@needs_exiv2
@pytest.mark.parametrize("layout", [None, *JUDGED])
def test_exiftool_and_exiv2_read_every_field_back(layout: str | None, tmp_path: Path) -> None:
    there = LAYOUTS[layout] if layout else None
    content = merged(there)
    path = write(tmp_path, content)
    keywords, caption = subjects(content), description(content)

    by_exiftool = exiftool(path)
    assert by_exiftool["XMP-dc:Subject"] == keywords
    assert by_exiftool["XMP-dc:Description"] == caption
    assert by_exiftool["XMP-lr:HierarchicalSubject"] == values(content, LIGHTROOM, "hierarchicalSubject")
    assert by_exiftool["XMP-digiKam:TagsList"] == values(content, DIGIKAM, "TagsList")
    if there is not None:
        before = exiftool(write(tmp_path, there.encode()))
        kept = {name for name in before if name.startswith("XMP-") and name not in by_exiftool}
        assert kept == set()
        write(tmp_path, content)

    by_exiv2 = exiv2(path)
    assert by_exiv2["Xmp.dc.subject"] == [", ".join(keywords)]
    assert f'lang="x-default" {caption}' in by_exiv2["Xmp.dc.description"][0]
    assert by_exiv2["Xmp.lr.hierarchicalSubject"] == [", ".join(values(content, LIGHTROOM, "hierarchicalSubject"))]
    assert by_exiv2["Xmp.digiKam.TagsList"] == [", ".join(values(content, DIGIKAM, "TagsList"))]


@needs_exiftool
def test_file_of_exiftools_is_merged_into_and_read_again_after_exiftool_wrote_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg.xmp"
    there = ["-XMP-dc:Subject=Minka", "-XMP-dc:Title=Our cat", "-XMP-xmp:Rating=5", "-XMP-dc:Creator=Ada"]
    subprocess.run(["exiftool", "-q", *there, "-o", str(path)], check=True)
    path.write_bytes(merged(path.read_bytes()))
    change = ["-XMP-xmp:Rating=3", "-XMP-dc:Subject+=Holiday"]
    subprocess.run(["exiftool", "-q", "-overwrite_original", *change, str(path)], check=True)
    content = path.read_bytes()
    assert is_ours(content), "exiftool keeps what it does not know"
    path.write_bytes(merged(content, NEWER))
    found = exiftool(path)
    assert found["XMP-dc:Subject"] == ["Minka", "cat", "Holiday", "rug"]
    assert found["XMP-dc:Description"] == "A tabby on a rug"
    assert (found["XMP-dc:Title"], found["XMP-xmp:Rating"], found["XMP-dc:Creator"]) == ("Our cat", 3, ["Ada"])


@needs_exiv2
def test_file_of_exiv2s_is_merged_into_and_read_again_after_exiv2_wrote_it_anew(tmp_path: Path) -> None:
    path = write(tmp_path, merged(DARKTABLE))
    commands = ["set Xmp.xmp.Rating 2", "set Xmp.dc.title lang=x-default Our cat", "set Xmp.dc.subject XmpBag Holiday"]
    for command in commands:
        subprocess.run(["exiv2", "-M", command, str(path)], check=True)
    content = path.read_bytes()
    assert is_ours(content)
    assert "Holiday" in subjects(content)
    path.write_bytes(merged(content, NEWER))
    after = exiv2(path)
    theirs = [word for word in subjects(content) if word not in WORDS.keywords]
    assert subjects(path.read_bytes()) == [word for word in subjects(content) if word not in ("mat", "indoors")] + [
        "rug"
    ]
    assert set(theirs) <= set(after["Xmp.dc.subject"][0].split(", "))
    assert after["Xmp.xmp.Rating"] == ["2"]
    assert after["Xmp.darktable.xmp_version"] == ["5"]
