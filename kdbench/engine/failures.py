"""What ended a cell, in words for its record, in one process and in several."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence

from kdbench.engine.distributed import Failure
from kdbench.errors import describe

STRANDED = (
    "(The other processes wait in the middle of a step, so that this cell ends the run. The same command goes on from "
    "the last checkpoint.)"
)


def failure_of(error: Exception, rank: int) -> Failure:
    """What ended a cell in the process of that rank."""
    frames = [frame for cause in _causes(error) for frame in traceback.extract_tb(cause.__traceback__)]
    place = tuple(f"{frame.filename}:{frame.lineno}" for frame in frames)
    # An exchange of gradients may be under way in a backward pass: no two processes are then surely at one place.
    backward = any(frame.name == "backward" for frame in frames)
    return Failure(describe(error), (*place, f"process {rank}") if backward else place)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(mine: Failure | None, everywhere: Sequence[Failure | None] | None, in_step: bool) -> str:
    """A record's error, from what is known of the processes."""
    if everywhere is None:
        return f"{mine.text if mine else 'Another process does not come to its end.'} {STRANDED}"
    if in_step:
        return next(found.text for found in everywhere if found)
    ends = (f"process {rank}: {found.text if found else 'done'}" for rank, found in enumerate(everywhere))
    return f"The processes ended apart, which ends the run. {'; '.join(ends)}"
