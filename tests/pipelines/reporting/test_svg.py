"""Figures in the page: balanced elements, unique ids, colours of the page, values as titles."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from decomp.pipelines.reporting.figure_style import DARK, STYLE, tip
from decomp.pipelines.reporting.svg import COLOURS, inline_svg


@pytest.fixture
def picture():
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        (line,) = axes.plot([1, 2, 3], [1, 4, 9], "o-", color=DARK)
        tip(line, "one & <two>", "b", "c")
        (bar,) = axes.barh([1], [2], color=DARK)
        tip(bar, "the bar")
        axes.set_xlabel("x < y")
        return inline_svg(figure, "key", 'words with "quotes"')


def test_it_is_an_element_without_namespaces_and_files(picture):
    root = ElementTree.fromstring(picture)
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label") == 'words with "quotes"'
    assert "xmlns" not in picture and "http" not in picture and "<metadata" not in picture and "<style" not in picture


def test_every_mark_has_its_own_title(picture):
    root = ElementTree.fromstring(picture)
    titles = [(parent.tag, child.text) for parent in root.iter() for child in parent if child.tag == "title"]
    assert titles == [("g", "the bar"), ("use", "one & <two>"), ("use", "b"), ("use", "c")]


def test_ids_are_unique_and_references_lead_to_them(picture):
    ids = re.findall(r'\bid="([^"]*)"', picture)
    assert len(set(ids)) == len(ids) and all(name.startswith("key-") for name in ids)
    references = re.findall(r'href="#([^"]*)"', picture) + re.findall(r"url\(#([^)]*)\)", picture)
    assert references and set(references) <= set(ids)


def test_colours_and_font_are_those_of_the_page(picture):
    assert f"var({COLOURS[DARK]})" in picture
    assert not re.search(r"#[0-9a-f]{6}\b", picture) and "font-family" not in picture and "DejaVu" not in picture
    assert ">x &lt; y</text>" in picture  # a text, that can be searched and read aloud
