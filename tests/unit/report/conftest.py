"""Boards of records made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdbench.records import Record
from kdbench.report.boards import Board, boards
from kdbench.report.frame import Entry, to_frame


def all_boards(*records: Record | Entry) -> list[Board]:
    """The boards of these records."""
    return boards(to_frame(record if isinstance(record, Entry) else Entry(record) for record in records))


@pytest.fixture
def boards_of() -> Callable[..., list[Board]]:
    return all_boards


@pytest.fixture
def board_of() -> Callable[..., Board]:
    """The only board of these records."""

    def only(*records: Record | Entry) -> Board:
        (board,) = all_boards(*records)
        return board

    return only
