"""The page: well-formed, complete, of one piece, and everything in it escaped and named as it should be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from kdbench.records import Record, StageResult
from kdbench.report.boards import boards
from kdbench.report.frame import Entry, to_frame
from kdbench.report.html import page
from kdbench.report.html.gallery import Gallery, GalleryRow
from kdbench.report.tables import EXTRA, Table, numbers, tables, words

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def page_of(records: Sequence[Record]) -> str:
    """The page of the records' boards."""
    return page.to_html(boards(to_frame(map(Entry, records))))


@pytest.fixture
def records(make_record: Callable[..., Record]) -> list[Record]:
    """Three benchmarks of a pair and a fourth one: distilled rows, a failed one, variants with hostile names."""
    losses = {"task": [2.0, 1.0], "kd": [0.3, 0.1]}
    about: dict[str, Any] = {"phase": "task", "key": "0", "data": {}, "steps": 5, "images": 20, "student_forwards": 20}
    stages = [StageResult(name="joint", losses=losses, **about)]
    made = [
        make_record({"cityscapes": score + seed}, method=name, seed=seed, stages=stages, benchmark=benchmark)
        for benchmark in ("g2c", "g2m", "g2b")
        for name, score in (("kd", 30.0), ("cwd", 42.0))
        for seed in (1, 2)
    ]
    made += [
        make_record({"cityscapes": 20.0 + 2 * seed}, method="plain", role="undistilled", seed=seed) for seed in (1, 2)
    ]
    return [
        *made,
        make_record({"cityscapes": 55.5}, role="teacher"),
        make_record(error="no memory <at all>\nTraceback"),
        make_record({"cityscapes": 33.0}, method="kd", variant="<script>alert(1)</script>&$x$", footnote="<b>"),
        make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, {"cityscapes": 70.0}, benchmark="c2a"),
    ]


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the first board a gallery, and the others none."""
    row = GalleryRow("synthetic acdc-fog-like", (PIXEL, PIXEL))
    held = iter([Gallery(3, (row,), ("image", "<kd>"), (("road <x>", "#804080"),), "A note & more.")])
    monkeypatch.setattr(page, "make_gallery", lambda *given: next(held, None))


class Parsed(HTMLParser):
    """Fails on a tag that is closed out of order; keeps tags with their attributes, and texts by element."""

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
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def values(self, name: str) -> list[str]:
        """Of an attribute, wherever it stands."""
        return [held[name] for _, held in self.tags if name in held]


def test_every_table_stands_on_the_page_once(records: list[Record]) -> None:
    shown = tables(boards(to_frame(map(Entry, records))), EXTRA)
    parsed = Parsed(page_of(records))
    assert [tag for tag, _ in parsed.tags].count("table") == len(shown) > 12
    cells = [cell.text for table in shown for line in table.lines for cell in line if not cell.place and cell.text]
    assert sorted(parsed.texts["td"]) == sorted(cells)
    assert "43.5 ± 0.7" in parsed.texts["b"]


def test_the_page_is_of_one_piece_and_its_contents_name_every_section(records: list[Record], gallery: None) -> None:
    text = page_of(records)
    parsed = Parsed(text)
    assert not re.search(r"https?:|src=\"//|@import|<link|url\(", text)
    assert all(value.startswith("data:") for value in parsed.values("src"))
    ids, linked = parsed.values("id"), parsed.values("href")
    assert len(ids) == len(set(ids))
    sections = [held["id"] for tag, held in parsed.tags if tag == "section"]
    assert [link[1:] for link in linked if link != "#top"] == sections
    assert len(sections) == 5
    assert "18 records on 4 boards" in text


def test_names_are_escaped_everywhere(records: list[Record]) -> None:
    text = page_of(records)
    assert Parsed(text)
    assert "no memory &lt;at all&gt;" in text
    assert "alert(1)" in text
    assert text.count("<script") == text.count("</script>") == 1


def test_law_9_in_the_page(records: list[Record], gallery: None) -> None:
    """Toy models and drawn domains by their marked names only; each caption with data source, protocol and decoder."""
    text = page_of(records)
    assert not re.search(r"(?<!mini:)\b(dinov2-l|resnet50)", text)
    assert not re.search(r"\b(cityscapes|gtav|acdc-night|acdc-snow)\b(?!-like)", text)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, flags=re.DOTALL)
    assert len(captions) == text.count("<figure>") > 15
    for caption in captions:
        for part in ("mini:dinov2-l", "data source synthetic-1", "protocol mini-1a2b3c4d", "decoder light"):
            assert part in caption


def test_a_gallery_and_what_stands_where_there_is_none(records: list[Record], gallery: None) -> None:
    text = page_of(records)
    images = [held for tag, held in Parsed(text).tags if tag == "img" and held.get("class") != "chart"]
    assert [(held["src"], held["alt"]) for held in images] == [
        (PIXEL, "image, synthetic acdc-fog-like"), (PIXEL, "<kd>, synthetic acdc-fog-like")
    ]  # fmt: skip
    for part in ("road &lt;x&gt;", "Of seed 3", "A note &amp; more."):
        assert part in text
    assert text.count("--pictures") == 3


def test_no_board_at_all_and_none_that_worked_are_no_errors(make_record: Callable[..., Record]) -> None:
    assert "0 records on 0 boards" in page_of([])
    text = page_of([make_record(error="out of memory")])
    assert "out of memory" in text
    assert "<figure>" not in text


def test_tables_without_boards_keep_the_values_of_their_numbers() -> None:
    columns = (words("method", ("kd", "cwd")), numbers("gain", (1.2345, None), "{:+.0f} points".format))
    text = page.tables_to_html([Table("t <1>", "c", "a", columns), Table("u", "c", "a", (words("x", ()),))])
    assert Parsed(text).values("id") == ["top", "t0", "t1"]
    assert "t &lt;1&gt;" in text
    assert re.findall(r"<td[^>]*>[^<]*", text) == [
        '<td class="words">kd', '<td class="numbers" data-value="1.2345">+1 points',
        '<td class="words">cwd', '<td class="numbers">',
    ]  # fmt: skip
