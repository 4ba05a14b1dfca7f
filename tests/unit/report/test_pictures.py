"""Contact sheets: every picture, title and legend colour has its place."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.pictures import colourise, contact_sheet

RED, BLUE, GREEN = (250, 10, 20), (10, 20, 250), (20, 240, 30)


def flat(colour: tuple[int, int, int], height: int = 16, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def where(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[slice, slice, int]:
    found = np.argwhere(np.all(sheet == colour, axis=2))
    (top, left), (bottom, right) = found.min(0), found.max(0) + 1
    return slice(int(top), int(bottom)), slice(int(left), int(right)), len(found)


def test_colourise_maps_classes_and_blackens_what_is_ignored() -> None:
    label = np.array([[0, 1], [255, 7]], np.uint8)
    assert colourise(label, [RED, BLUE]).tolist() == [[[*RED], [*BLUE]], [[0, 0, 0], [0, 0, 0]]]


def test_tiles_are_enlarged_by_a_whole_factor_and_placed_in_order() -> None:
    sheet = np.asarray(
        contact_sheet([("a", [flat(RED), flat(BLUE)]), ("b", [flat(GREEN)])], ["one", "two"], tile=(48, 96))
    )
    rows, columns, count = where(sheet, RED)
    assert (rows.stop - rows.start, columns.stop - columns.start, count) == (48, 96, 48 * 96)
    blue_rows, blue_columns, _ = where(sheet, BLUE)
    assert blue_rows == rows
    assert blue_columns.start >= columns.stop
    green_rows, green_columns, _ = where(sheet, GREEN)
    assert green_columns == columns
    assert green_rows.start >= rows.stop
    assert np.all(sheet[0] == 255)
    assert np.all(sheet[:, -1] == 255)


def test_pictures_of_other_sizes_keep_their_aspect() -> None:
    sheet = np.asarray(contact_sheet([("", [flat(RED), flat(BLUE, 100, 50)])], ["", ""], tile=(50, 100)))
    rows, columns, _ = where(sheet, RED)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (48, 96)
    rows, columns, _ = where(sheet, BLUE)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (50, 25)


def test_legend_wraps_below_the_grid_and_shows_every_colour() -> None:
    legend = [(f"class number {k}", (k * 9 + 3, 77, 200 - k)) for k in range(19)]
    plain = contact_sheet([("row", [flat(RED)])], ["column"], tile=(32, 64))
    sheet = np.asarray(contact_sheet([("row", [flat(RED)])], ["column"], legend=legend, tile=(32, 64)))
    assert sheet.shape[0] > plain.height + 40
    assert sheet.shape[1] == plain.width
    red_rows, _, _ = where(sheet, RED)
    assert all(where(sheet, colour)[0].start >= red_rows.stop for _, colour in legend)


def test_titles_are_written_and_widen_the_sheet() -> None:
    bare = contact_sheet([("", [flat(RED)])], [""], tile=(32, 64))
    titled = contact_sheet(
        [("a row", [flat(RED)])], ["a column"], title="A long title that needs its room", tile=(32, 64)
    )
    assert titled.width > bare.width
    assert titled.height > bare.height
    rows, columns, _ = where(np.asarray(titled), RED)
    assert np.any(np.asarray(titled)[: rows.start] < 128)
    assert np.any(np.asarray(titled)[rows, : columns.start] < 128)


@pytest.mark.parametrize("rows", [[], [("empty", [])]])
def test_an_empty_sheet_is_still_a_sheet(rows: list[tuple[str, list[np.ndarray]]]) -> None:
    assert contact_sheet(rows, [], title="nothing").width > 0


def test_grey_pictures_and_default_tiles() -> None:
    sheet = contact_sheet([("depth", [np.full((64, 128), 90, np.uint8)])], ["x"])
    rows, columns, _ = where(np.asarray(sheet), (90, 90, 90))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (128, 256)
