"""A matplotlib figure as part of a page: SVG in the page's ink, with ids of its own, the same bytes every time."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

PIXELS = 96
"""CSS pixels of an inch."""
READABLE = 0.65
"""A figure is not shrunk below this share of its size; what is narrower scrolls."""

# Colours that no figure uses stand for the two that the page decides, in the light and in the dark.
INK, PAPER = "#010203", "#fdfcfb"
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "kdbench", "text.parse_math": False,
    "font.family": "DejaVu Sans", "font.size": 9,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": INK, "grid.alpha": 0.15, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "axes.titlesize": 9, "axes.titleweight": "bold", "legend.frameon": False, "legend.fontsize": 8,
    "figure.facecolor": "none", "axes.facecolor": "none", "figure.dpi": 72,
}  # fmt: skip
"""For whoever draws a figure for a page: `@rc_context(STYLE)`."""


def inline(figure: Figure, prefix: str, description: str) -> str:
    """The <svg> element. prefix: of its ids, unique on the page. description: for who cannot see it."""
    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(file.getvalue())
    _without_namespaces(root)
    _without_styles_of_a_page(root)
    _own_ids(root, prefix)
    _shorter_numbers(root)
    width = round(figure.get_figwidth() * PIXELS)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "style": f"width: {width}px; min-width: {round(READABLE * width)}px",
        "role": "img",
        "aria-label": description,
    }
    text = re.sub(r"\s*\n\s*", " ", ElementTree.tostring(root, encoding="unicode"))
    return text.replace("> <", "><").replace(INK, "currentColor").replace(PAPER, "var(--paper)")


def _without_namespaces(root: ElementTree.Element) -> None:
    """HTML knows the elements by their bare names."""
    for node in root.iter():
        node.tag = _bare(node.tag)
        node.attrib = {_bare(name): value for name, value in node.attrib.items()}


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def _without_styles_of_a_page(root: ElementTree.Element) -> None:
    """Rules would hold for the whole page, and fonts are the page's."""
    for parent in root.iter():
        for child in [child for child in parent if child.tag == "style"]:
            parent.remove(child)
        if "style" in parent.attrib:
            parent.attrib["style"] = re.sub(r"font-family: [^;]*;? ?", "", parent.attrib["style"])


def _own_ids(root: ElementTree.Element, prefix: str) -> None:
    """Ids that something points to carry the prefix; all others go."""
    held = "\n".join(value for node in root.iter() for value in node.attrib.values())
    used = set(re.findall(r"#([^\s)]+)", held))
    for node in root.iter():
        name = node.attrib.pop("id", None)
        node.attrib = {key: re.sub(r"(^#|url\(#)", rf"\1{prefix}-", value) for key, value in node.attrib.items()}
        if name in used:
            node.attrib["id"] = f"{prefix}-{name}"


def _shorter_numbers(root: ElementTree.Element) -> None:
    """Hundredths of a point are enough."""
    for node in root.iter():
        node.attrib = {name: re.sub(r"(\.\d\d)\d+", r"\1", value) for name, value in node.attrib.items()}
