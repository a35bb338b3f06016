"""Parses the RDF metadata inside an SVG: title, keywords, licence."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from xml.etree import ElementTree

_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
# Both namespaces of Creative Commons are in use, so only the local name is matched.
_WORK = re.compile(r"\{[^}]*\}Work")
_LICENSE = re.compile(r"\{[^}]*\}license")
_DIGITS = re.compile(r"\d+")
_PUNCTUATION = re.compile(r"[\W_]+")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of an SVG; missing values are empty."""

    title: str = ""
    keywords: tuple[str, ...] = ()
    license: str = ""

    @property
    def public_domain(self) -> bool:
        """Whether no licence other than the public domain is named."""
        return not self.license or "publicdomain" in self.license.casefold().replace(" ", "")


def parse_metadata(svg: bytes) -> Metadata:
    """The metadata of an SVG; empty if it is not well-formed XML.

    Only titles of the work count: publisher and creator have titles too.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError:
        return Metadata()
    titles, words, licenses = [], [], []
    for work in (element for element in root.iter() if _WORK.fullmatch(element.tag)):
        titles += [_text(title) for title in work.findall(f"{_DC}title")]
        words += [_text(word) for subject in work.findall(f"{_DC}subject") for word in subject.iter(f"{_RDF}li")]
        licenses += [" ".join(e.attrib.values()) for e in work.iter() if _LICENSE.fullmatch(e.tag)]
    return Metadata(
        title=next(filter(None, titles), ""),
        keywords=tuple(dict.fromkeys(filter(None, words))),
        license=" ".join(filter(None, licenses)),
    )


def concept_of(title: str) -> str:
    """A title reduced to the name of its series: no case, digits, punctuation or numbering.

    >>> concept_of("Clipart by Nicu Buculei - smiley111"), concept_of("Card_03 (2004)")
    ('clipart by nicu buculei smiley', 'card')
    """
    bare = _DIGITS.sub(" ", unicodedata.normalize("NFKC", title).casefold())
    return " ".join(_PUNCTUATION.sub(" ", bare).split()) or title.casefold().strip()


def _text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())
