"""SVG elements for an HTML page, made from figures: colours follow the page, texts appear on hover, ids are unique."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .figure_style import ACCENT, BETWEEN, DARK, EDGE, FAINT, GRID, INK, LIGHT, MIDDLE, PAPER, RULE, TIP

#: Custom properties of the page's style sheet for the colours of the figures.
COLOURS = {
    INK: "--ink", DARK: "--dark", MIDDLE: "--middle", LIGHT: "--light", ACCENT: "--accent", FAINT: "--faint",
    EDGE: "--edge", RULE: "--rule", GRID: "--grid", PAPER: "--paper",
}  # fmt: skip
_NAMESPACE = re.compile(r"\{[^}]*\}")
#: Numbers with more digits than a hundredth of a point.
_DIGITS = re.compile(r"(-?\d+\.\d{2})\d+")


def inline_svg(figure: Figure, prefix: str, alternative: str) -> str:
    """A figure as an ``svg`` element.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Artists with the texts of :func:`~decomp.pipelines.reporting.figure_style.tip` get them as ``title``.
    prefix : str
        Of all ids in the element.
    alternative : str
        Text alternative.

    Returns
    -------
    str
        Without XML declaration and namespaces. Its texts are texts in the font of the page, its background is
        transparent.
    """
    buffer = io.StringIO()
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        parent.tag = _NAMESPACE.sub("", parent.tag)
        for child in list(parent):
            if _NAMESPACE.sub("", child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in list(root.iter()):
        _write_attributes(element, prefix)
        texts = element.attrib.pop("tip", None)
        if texts is not None:
            _write_titles(element, texts.split(BETWEEN))
        element.tail = None
        if element.tag not in ("text", "title", "tspan"):
            element.text = None
    for unused in ("width", "height", "version"):
        root.attrib.pop(unused, None)
    width = float(root.attrib["viewBox"].split()[2])
    root.attrib.update({"role": "img", "aria-label": alternative, "style": f"max-width:{width * 4 / 3 * 1.3:.0f}px"})
    return ElementTree.tostring(root, encoding="unicode")


def _write_attributes(element: ElementTree.Element, prefix: str) -> None:
    """Without namespaces, with prefixed ids and the colours of the page."""
    attributes = {_NAMESPACE.sub("", name): value for name, value in element.attrib.items()}
    element.attrib.clear()
    for name, value in attributes.items():
        if name == "id":
            if value.startswith(TIP):
                element.set("tip", value.removeprefix(TIP))
                continue
            value = f"{prefix}-{value}"
        elif name == "href" and value.startswith("#"):
            value = f"#{prefix}-{value[1:]}"
        elif name in ("d", "x", "y", "transform", "width", "height"):
            value = _DIGITS.sub(r"\1", " ".join(value.split()))
        elif name == "style":
            value = _page_style(value)
        element.set(name, value.replace("url(#", f"url(#{prefix}-"))


def _page_style(style: str) -> str:
    """A style with colours as custom properties and the font of the page."""
    kept = [part for part in style.split("; ") if not part.startswith("font-family")]
    return re.sub(r"#[0-9a-f]{6}", lambda found: _variable(found[0]), "; ".join(kept))


def _variable(colour: str) -> str:
    return f"var({COLOURS[colour]})" if colour in COLOURS else colour


def _write_titles(element: ElementTree.Element, texts: list[str]) -> None:
    """One title for the whole element, or one for each of its marks where there are as many."""
    marks = [mark for mark in element.iter("use")]
    targets = marks if len(texts) > 1 and len(marks) == len(texts) else [element]
    for target, text in zip(targets, texts if len(targets) > 1 else ["; ".join(texts)]):
        title = ElementTree.Element("title")
        title.text = text
        target.insert(0, title)
