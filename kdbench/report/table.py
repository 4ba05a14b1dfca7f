"""A table as people read it: marked text cells under a caption, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

SIGNS = "*†‡§¶"
REFERENCE = "°"
"""Marks a row of committed records."""


@dataclass(frozen=True)
class Cell:
    """A value as displayed; place: 1 for the best student of its column, 2 for the second, 0 for all others."""

    text: str
    place: int = 0


@dataclass(frozen=True)
class OldTable:
    """Text cells. conditions: who was tested under what, which several tables share. about: what the numbers are."""

    title: str
    conditions: str
    about: str
    header: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


Table = OldTable


class Named(Protocol):
    """What has a line."""

    @property
    def method(self) -> str: ...


class Labelled(Named, Protocol):
    """What is labelled with its role and its origin."""

    @property
    def role(self) -> str: ...
    @property
    def reference(self) -> bool: ...


R = TypeVar("R", bound=Named)
R_contra = TypeVar("R_contra", bound=Named, contravariant=True)


@dataclass(frozen=True)
class OldColumn(Generic[R_contra]):
    """text: as displayed. value: what is ranked, if anything; better: 1 where more is better, -1 where less is."""

    title: str
    text: Callable[[R_contra], str]
    value: Callable[[R_contra], float | None] = field(default=lambda row: None)
    better: int = 1


Column = OldColumn


def label(row: Labelled) -> str:
    """The method, with its role where that is another than its name, and a sign where all of it is committed."""
    role = "" if row.role in ("distilled", row.method) else f", {row.role}"
    return row.method + role + (REFERENCE if row.reference else "")


def make_table(
    columns: Sequence[Column[R]],
    rows: Sequence[R],
    ranked: Collection[str] = (),
    *,
    title: str,
    conditions: str,
    about: str,
    notes: Iterable[str] = (),
) -> Table:
    """A line a row; marks go to the rows of `ranked` methods alone."""
    lines = tuple(zip(*(_marked(column, rows, ranked) for column in columns), strict=True))
    return Table(title, conditions, about, tuple(column.title for column in columns), lines, tuple(notes))


def _marked(column: Column[R], rows: Iterable[R], ranked: Collection[str]) -> list[Cell]:
    """Ranks what is displayed, so that equal numbers on the page share a mark."""
    shown = [(column.text(row), number(column.value(row)) if row.method in ranked else "") for row in rows]
    values = [value for _, value in shown if value]
    order = sorted(set(values), key=float, reverse=column.better > 0)[:2] if len(values) > 1 else []
    return [Cell(text, order.index(value) + 1 if value in order else 0) for text, value in shown]


def plain(title: str, value: Callable[[R], float | None], better: int = 1) -> Column[R]:
    """A column of numbers without a deviation."""
    return Column(title, lambda row: number(value(row)), value, better)


def number(value: float | None) -> str:
    """One decimal, never a negative zero."""
    return "" if value is None else f"{value:z.1f}"


def signed(value: float | None) -> str:
    """One decimal with its sign."""
    text = number(value)
    return text if not text or text.startswith("-") or text == "0.0" else f"+{text}"


def spread(mean: float | None, deviation: float | None) -> str:
    """A mean with its deviation over seeds, if there are several."""
    return number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}"


def signs(footnotes: Iterable[str]) -> dict[str, str]:
    """A sign for every remark: * to ¶, then the same doubled, and so on."""
    different = dict.fromkeys(footnote for footnote in footnotes if footnote)
    return {footnote: SIGNS[i % len(SIGNS)] * (1 + i // len(SIGNS)) for i, footnote in enumerate(different)}
