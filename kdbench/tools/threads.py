"""Work on a data set's files in several threads, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kdbench.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 16
"""Items a thread that are begun before the first result of them is asked for: few are held in memory."""


def in_threads(
    what: str, function: Callable[[Item], Result], items: Sequence[Item], threads: int, progress: Progress
) -> Iterator[Result]:
    """Yield the function's results in the order of the items; an error leaves out what has not begun."""
    progress.begin(what, len(items))
    try:
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(items), AHEAD * threads):
                for done, result in enumerate(pool.map(function, items[start : start + AHEAD * threads]), start + 1):
                    yield result
                    progress.advance(done, {})
    finally:
        progress.end()
