"""Names and metadata as in packages. A concept written in two ways would be on both sides of a split."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pipelines.samples.emoji_names import Names, concept_code, has_skin_tone, parse_names
from pipelines.samples.emoji_sets import wanted_files
from pipelines.samples.svg_metadata import Metadata, concept_of, parse_metadata
from pipelines.samples.table import captions_of

SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<cc:Work rdf:about="">
 <dc:title>{title}</dc:title>
 <dc:subject><rdf:Bag><rdf:li>animal</rdf:li><rdf:li></rdf:li><rdf:li>cat &amp; dog</rdf:li><rdf:li>animal</rdf:li>
 </rdf:Bag></dc:subject>
 <dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
 <cc:license rdf:resource="{license}"/>
</cc:Work></rdf:RDF></metadata><path d="M0 0"/></svg>"""
PUBLIC = "http://web.resource.org/cc/PublicDomain"


@pytest.mark.parametrize(
    ("code", "concept"),
    [
        ("1f600", "1F600"),
        ("0023-FE0F-20E3", "0023-20E3"),
        ("1f468-200d-2764-fe0f-200d-1f468", "1F468-200D-2764-200D-1F468"),
        ("2764-FE0F", "2764"),
    ],
)
def test_every_set_writes_a_concept_in_the_same_way(code: str, concept: str) -> None:
    assert concept_code(code) == concept == concept_code(concept)


def test_skin_tones_are_told_from_other_modifiers() -> None:
    assert has_skin_tone("1F44B-1F3FB")
    assert has_skin_tone("1F3FF")
    assert not has_skin_tone("1F44B")
    assert not has_skin_tone("1F3FA"), "the amphora, one code point before the skin tones"
    assert not has_skin_tone("1F400"), "the rat, one code point after them"


def test_names_are_those_that_both_languages_have() -> None:
    english = [
        {"label": "red heart", "hexcode": "2764", "tags": ["love", "red heart", "love", " "], "group": 0},
        {"label": "new emoji", "hexcode": "1FAFF", "tags": ["new"], "group": 0},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    chinese = [
        {"label": "红心", "hexcode": "2764-FE0F", "tags": ["爱"]},
        {"label": "区域指标 A", "hexcode": "1F1E6"},
    ]
    messages = {"groups": [{"key": "smileys-emotion", "message": "smileys & emotion", "order": 0}]}
    names = parse_names(*(json.dumps(part).encode() for part in (english, chinese, messages)))
    heart = Names(english="red heart", chinese="红心", tags=("love",), tags_zh=("爱",), group="smileys-emotion")
    indicator = Names(english="regional indicator A", chinese="区域指标 A", tags=(), tags_zh=(), group=None)
    assert names == {"2764": heart, "1F1E6": indicator}


def test_only_what_a_set_has_drawn_itself_is_taken() -> None:
    """If a set lacks a drawing, the package may hold one of another set, under another licence."""
    index = [
        {"unified": "2764-FE0F", "image": "2764-fe0f.png", "has_img_google": True, "has_img_twitter": True},
        {"unified": "1F47D", "image": "1f47d.png", "has_img_google": False, "has_img_twitter": True},
        {"unified": "1F3FB", "image": "1f3fb.png", "has_img_google": True, "has_img_twitter": True},
    ]
    dropped: Counter[str] = Counter()
    assert wanted_files(json.dumps(index).encode(), "google", dropped) == {"2764-fe0f.png": "2764"}
    assert dropped == {"not_drawn": 1, "skin_tone": 1}
    assert len(wanted_files(json.dumps(index).encode(), "twitter", Counter())) == 2


def test_the_title_is_that_of_the_work_and_not_of_its_publisher() -> None:
    told = parse_metadata(SVG.format(title="\n Sleeping  cat ", license=PUBLIC).encode())
    assert told == Metadata(title="Sleeping cat", keywords=("animal", "cat & dog"), license=PUBLIC)
    assert parse_metadata(SVG.format(title="", license=PUBLIC).encode()).title == ""


@pytest.mark.parametrize("broken", [b"", b"<svg", b"no xml at all", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_an_svg_without_metadata_says_nothing(broken: bytes) -> None:
    assert parse_metadata(broken) == Metadata()


@pytest.mark.parametrize(
    ("license", "free"),
    [
        (PUBLIC, True),
        ("http://creativecommons.org/licenses/publicdomain/", True),
        ("Public Domain", True),
        ("", True),
        ("http://creativecommons.org/licenses/GPL/2.0/", False),
        ("http://creativecommons.org/licenses/by-nc/2.0/", False),
    ],
)
def test_a_drawing_that_names_another_licence_is_seen(license: str, free: bool) -> None:
    told = parse_metadata(SVG.format(title="x", license=license).encode())
    assert told.public_domain is free


def test_a_series_is_one_concept_and_other_titles_are_others() -> None:
    assert {concept_of(f"Clipart by Nicu Buculei - {name}") for name in ("smiley111", "Smiley 7", "smiley_02")} == {
        "clipart by nicu buculei smiley"
    }
    stamped = "Part of the Flat Icon Collection (Wed Aug 25 23:{} 2004)"
    assert concept_of(stamped.format("29:46")) == concept_of(stamped.format("23:49"))
    assert concept_of("Cat") != concept_of("Cattle")
    assert concept_of("猫 2") == "猫"
    assert concept_of("2004") == "2004", "a title of digits alone keeps them: no concept is empty"


def test_tags_become_captions_only_if_asked_for_and_only_once() -> None:
    labels, tags, tags_zh = ["dog", "狗"], ("pet", "animal"), ("宠物", "动物")
    assert captions_of(labels, tags, tags_zh, "label") == labels
    assert captions_of(labels, tags, tags_zh, "label+tags") == ["dog", "狗", "pet, animal", "宠物、动物"]
    assert captions_of(labels, (), (), "label+tags") == labels
    assert captions_of(["dog"], ("dog",), (), "label+tags") == ["dog"], "the label again is no caption more"
