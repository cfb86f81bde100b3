"""Reads pages as a browser would, and checks what holds for each of them."""

import re
from xml.etree import ElementTree


def parse(html):
    """The page as a tree; raises where a tag is left open or an attribute is broken."""
    doctype, _, rest = html.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def section_of(tree, title):
    """The section with a title."""
    (found,) = [s for s in tree.iter("section") if text_of(s.find("h2")) == title]
    return found


def rows_of(element):
    """The cells of the rows of the tables below an element, without their heads."""
    return [[text_of(cell) for cell in row] for row in element.findall(".//tbody/tr")]


def heads_of(element):
    """The heads of the table below an element."""
    return [text_of(cell) for cell in element.findall(".//thead/tr/th")]


def check_fetches_nothing(html):
    without_pictures = re.sub(r'(?<="data:image/)(png|jpeg);base64,[A-Za-z0-9+/=]*"', '"', html)
    forbidden = r"https?:|//|@import|url\(|javascript:|expression\("
    assert not re.search(forbidden, without_pictures)
    for element in parse(html).iter():
        assert element.tag not in ("script", "link", "iframe", "object", "base", "form")
        for name, value in element.attrib.items():
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert value.startswith("data:image/")
    policy = parse(html).find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy.startswith("default-src 'none';")


def check_printable(html):
    """XML has no characters below a space but these; what else names hold is spelled out."""
    assert not re.search(r"[^\n\x20-\x7e\xa0-\u200d\u2010-\u2027\u2030-\ud7ff]", html)
