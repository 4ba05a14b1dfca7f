"""Contact sheets: every picture, name and legend colour has its place."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from kdbench.pictures import colourise, contact_sheet

RED, BLUE, GREEN = (250, 10, 20), (10, 20, 250), (20, 240, 30)


def flat(colour: tuple[int, int, int], height: int = 16, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def box(sheet: Figure, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a colour's pixels, as the PNG shows them."""
    file = io.BytesIO()
    sheet.savefig(file)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    found = np.argwhere(np.all(pixels == colour, axis=2))
    return (*found.min(0).tolist(), *(found.max(0) + 1).tolist())


def test_colourise_maps_classes_and_blackens_what_is_ignored() -> None:
    label = np.array([[0, 1], [255, 7]], np.uint8)
    assert colourise(label, [RED, BLUE]).tolist() == [[[*RED], [*BLUE]], [[0, 0, 0], [0, 0, 0]]]


def test_pictures_stand_in_their_rows_and_columns_with_their_aspect() -> None:
    sheet = contact_sheet([("a", [flat(RED), flat(BLUE)]), ("b", [flat(GREEN)])], ["one", "two"], title="a title")
    red, blue, green = (box(sheet, colour) for colour in (RED, BLUE, GREEN))
    assert red[0] == pytest.approx(blue[0], abs=1)
    assert red[3] < blue[1]
    assert red[1] == pytest.approx(green[1], abs=1)
    assert red[2] < green[0]
    for top, left, bottom, right in (red, blue, green):
        assert (right - left) / (bottom - top) == pytest.approx(2, abs=0.05)
        assert right - left > 200
    assert [axes.get_title() for axes in sheet.axes] == ["one", "two", "", ""]
    assert {text.get_text() for axes in sheet.axes for text in axes.texts} == {"a", "b"}
    assert sheet.get_suptitle() == "a title"


def test_pictures_of_other_sizes_keep_their_aspect() -> None:
    sheet = contact_sheet([("", [flat(RED, 20, 20), flat(BLUE, 400, 800)])], ["", ""])
    for colour, aspect in ((RED, 1), (BLUE, 2)):
        top, left, bottom, right = box(sheet, colour)
        assert (right - left) / (bottom - top) == pytest.approx(aspect, abs=0.05)


def test_the_legend_below_the_pictures_shows_every_colour() -> None:
    legend = [(f"class number {k}", (k * 9 + 3, 77, 200 - k)) for k in range(19)]
    sheet = contact_sheet([("row", [flat(RED)])], ["column"], legend=legend)
    bottom = box(sheet, RED)[2]
    assert all(box(sheet, colour)[0] >= bottom for _, colour in legend)
