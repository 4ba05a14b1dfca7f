"""The page: well-formed, complete, of one piece, and everything in it escaped and named as it should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from kdbench.records import StageResult
from kdbench.report import ledger
from kdbench.report.board import Board, boards
from kdbench.report.entries import Entry
from kdbench.report.extra_tables import DETAILS
from kdbench.report.page.gallery import Gallery, GalleryRow
from kdbench.report.page.page import sort_key, tables_to_html, to_html
from kdbench.report.published import match, read_published
from kdbench.report.table import Cell, Table
from kdbench.report.views import tables

PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def found(make_record) -> list[Board]:
    """Two benchmarks of a pair and a third one: distilled rows, a failed one, variants with hostile names."""
    losses = {"task": [2.0, 1.0], "kd": [0.3, 0.1]}
    stages = [
        StageResult(
            name="joint", phase="task", key="0", data={}, steps=5, images=20, student_forwards=20, losses=losses
        )
    ]
    entries = [
        Entry(make_record({"cityscapes": score + seed}, method=name, seed=seed, stages=stages, benchmark=benchmark))
        for benchmark in ("g2c", "g2m", "g2b")
        for name, score in (("kd", 30.0), ("cwd", 42.0))
        for seed in (1, 2)
    ]
    for seed in (1, 2):
        entries.append(
            Entry(make_record({"cityscapes": 20.0 + 2 * seed}, method="plain", role="undistilled", seed=seed))
        )
    return boards(
        [
            *entries,
            Entry(make_record({"cityscapes": 55.5}, role="teacher"), reference=True),
            Entry(make_record(error="no memory <at all>\nTraceback")),
            Entry(
                make_record({"cityscapes": 33.0}, method="kd", variant="<script>alert(1)</script>&$x$", footnote="<b>")
            ),
            Entry(make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, {"cityscapes": 70.0}, benchmark="c2a")),
        ]
    )


class Page(HTMLParser):
    """Fails on a tag that is closed out of order; keeps attributes, and texts by the element that they stand in."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def values(self, name: str) -> list[str]:
        """Of an attribute, wherever it stands."""
        return [held[name] for _, held in self.tags if name in held]


def test_every_table_stands_on_the_page_once(found: list[Board]) -> None:
    shown = tables(found, DETAILS)
    page = Page(to_html(found, {}))
    assert [tag for tag, _ in page.tags].count("table") == len(shown) > 12
    cells = sorted(
        cell.text for table in shown for line in table.lines for cell in line if not cell.place and cell.text
    )
    assert sorted(page.texts["td"]) == cells
    assert "43.5 ± 0.7" in page.texts["b"]
    for table in shown:
        assert table.title in (*page.texts.get("h4", []), *page.texts["summary"], *page.texts["h3"])


def test_the_page_is_of_one_piece(found: list[Board]) -> None:
    text = to_html(found, {0: gallery()})
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|<link", text)
    assert all(value.startswith("data:") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_ids_are_unique_and_every_reference_finds_its_own(found: list[Board]) -> None:
    text = to_html(found, {})
    ids = Page(text).values("id")
    assert len(ids) == len(set(ids)) > 50
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)


def test_names_are_escaped_everywhere(found: list[Board]) -> None:
    text = to_html(found, {})
    assert "no memory &lt;at all&gt;" in text
    assert text.count("<script>") == text.count("</script>") == 1
    assert "alert(1)" in text
    assert not re.search(r"<script[^>]*>alert", text)
    assert Page(text)


def test_law_9_in_the_page(found: list[Board]) -> None:
    """Small and drawn things by their marked names only; each caption with world, protocol and decoder."""
    text = to_html(found, {0: gallery()})
    assert not re.search(r"(?<!mini:)\b(dinov2-l|resnet50)", text)
    assert not re.search(r"\b(cityscapes|gtav|acdc-night|acdc-snow)\b(?!-like)", text)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, flags=re.DOTALL)
    assert len(captions) == text.count("<figure>") > 15
    for caption in captions:
        for part in ("mini:dinov2-l", "world synthetic-1", "protocol mini-1a2b3c4d", "decoder light"):
            assert part in caption


def test_the_contents_name_every_section(found: list[Board]) -> None:
    page = Page(to_html(found, {}))
    sections = [held["id"] for tag, held in page.tags if tag == "section"]
    linked = [held["href"][1:] for tag, held in page.tags if tag == "a" and held["href"] != "#top"]
    assert linked == sections
    assert len(sections) == len(found) + 1


def test_the_head_counts_records_and_boards(found: list[Board], make_record, write: Callable, tmp_path) -> None:
    assert "0 records on 4 boards" in to_html(found, {})
    entries = [make_record(method=name, seed=seed) for name in ("kd", "cwd") for seed in range(3)]
    read = boards([Entry(record, path=write(tmp_path, record)) for record in entries])
    assert "6 records on 1 board<" in to_html(read, {})


def test_the_same_boards_give_the_same_bytes(found: list[Board]) -> None:
    assert to_html(found, {}) == to_html(found, {})


def gallery() -> Gallery:
    """A row with a missing tile."""
    tiles = (GalleryRow("synthetic acdc-fog-like", (PIXEL, PIXEL, None)),)
    return Gallery(3, tiles, ("image", "label", "<kd>"), (("road <x>", "#804080"),), "A note & more.")


def test_a_gallery_and_what_stands_where_there_is_none(found: list[Board]) -> None:
    text = to_html(found, {1: gallery()})
    page = Page(text)
    images = [held for tag, held in page.tags if tag == "img"]
    assert [held["src"] for held in images] == [PIXEL, PIXEL]
    assert [held["alt"] for held in images] == ["image, synthetic acdc-fog-like", "label, synthetic acdc-fog-like"]
    assert {held["loading"] for held in images} == {"lazy"}
    assert "road &lt;x&gt;" in text
    assert "&lt;kd&gt;" in text
    assert "Of seed 3" in text
    assert "A note &amp; more." in text
    assert text.count("--pictures") == len(found) - 1
    where = text.index("<img"), text.index('<section id="b1"'), text.index('<section id="b2"')
    assert where[1] < where[0] < where[2]


def test_a_gallery_without_rows_shows_its_note(found: list[Board]) -> None:
    text = to_html(found, {0: Gallery(0, (), (), (), "2 of the files cannot be used")})
    assert "2 of the files cannot be used" in text
    assert 'class="gallery"' not in text


def test_no_board_at_all_and_none_that_worked_are_no_errors(make_record) -> None:
    assert "0 records on 0 boards" in to_html([], {})
    text = to_html(boards([Entry(make_record(error="out of memory"))]), {})
    assert "out of memory" in text
    assert "<figure>" not in text


def test_tables_without_boards() -> None:
    shown = ledger.tables(match(read_published(), []))
    text = tables_to_html(shown)
    assert Page(text).values("id") == ["top", *(f"t{index}" for index in range(len(shown)))]
    assert "Table 1 of Lv et al., CVPR 2026: dinov2-l -&gt;" in text
    assert "not run" in text
    assert "empty" in tables_to_html([Table("empty", "a", "b", ("x", "y"), ())])


def test_keys_stand_in_the_cells_that_hold_numbers() -> None:
    lines = ((Cell("kd"), Cell("+1.2 ± 0.3")), (Cell("cwd"), Cell("")))
    text = tables_to_html([Table("t", "c", "a", ("method", "mean"), lines)])
    assert re.findall(r'<td class="([a-z ]+)"(?: data-key="([^"]+)")?>', text) == [
        ("left name", ""), ("right", "1.2"), ("left name", ""), ("right", "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("24.2 ± 0.3", 24.2), ("+1.5 to +2.4 (4)", 1.5), ("-1.8 to -1.1 (4)", -1.8), ("<0.001", 0.001), ("-32 %", -32),
        ("0.79 M", 0.79e6), ("3.89 TFLOP", 3.89e12), ("267 MFLOP", 267e6), ("12.5 kB", 12_500), ("6.7 ms", 0.0067),
        ("13.6 k", 13_600), ("0 ", 0), ("0:03:30", 210), ("1 day, 2:00:01", 93_601), ("2 days, 0:00:00", 172_800),
        ("4.12°*", 4.12), ("1,234", 1234), ("", None), ("cwd", None), ("2nd", None), ("sky +18.0, bus +11.1", None),
        ("4 meals", 4), ("gkd[t=2]", None), ("-", None),
    ],
)  # fmt: skip
def test_sort_keys(text: str, key: float | None) -> None:
    assert sort_key(text) == (None if key is None else pytest.approx(key))
