"""Finished and unfinished stages on disk, by content key. Files appear whole or not at all; a lock guards each key."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from torch import Tensor

from kdbench.engine.shipped import CARD, SHIPPED, ShippedStage, snapshot_name
from kdbench.engine.states import State, from_file, to_file
from kdbench.files import save_atomically, write_atomically
from kdbench.records import StageSummary

Origin = Literal["stored", "shipped"]
"""Where a finished stage is: in the store, or in what comes with kdbench."""


@dataclass(frozen=True)
class StageFolder:
    """One stage's place in the store: snapshots, a checkpoint while it runs, a summary once it is done.

    shipped: the same stage as it comes with kdbench; it is read where the store lacks it.
    """

    path: Path
    shipped: ShippedStage | None = None

    @property
    def origin(self) -> Origin | None:
        """Where the finished stage is; None where it has to be trained."""
        return "stored" if self._own_summary is not None else "shipped" if self.shipped is not None else None

    @property
    def summary(self) -> StageSummary | None:
        """What the stage reported; None until it is done, since the summary is written last."""
        return self._own_summary or (self.shipped.card.summary if self.shipped is not None else None)

    @property
    def _own_summary(self) -> StageSummary | None:
        try:
            return StageSummary.model_validate_json((self.path / CARD).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def finish(self, summary: StageSummary) -> None:
        """Mark the stage as done and drop its checkpoint."""
        write_atomically(self.path / CARD, summary.model_dump_json().encode())
        self._checkpoint.unlink(missing_ok=True)

    def clear(self) -> None:
        """Make the stage unfinished. Its snapshots stay for their readers, until the same content replaces them."""
        (self.path / CARD).unlink(missing_ok=True)
        self._checkpoint.unlink(missing_ok=True)

    def save_snapshot(self, number: int, states: Mapping[str, State]) -> None:
        """Keep the trained parts as they are now."""
        write_atomically(self._snapshot(number), to_file(states))

    def load_snapshot(self, number: int, part: str) -> dict[str, Tensor]:
        """Return one part's state dict."""
        if self.shipped is not None and self.origin == "shipped":
            return self.shipped.load(number, part)
        return from_file(self._snapshot(number).read_bytes(), part)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save all that a killed stage needs to continue as if nothing had happened."""
        save_atomically(self._checkpoint, partial(torch.save, state))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, if the stage was interrupted."""
        if not self._checkpoint.is_file():
            return None
        state: dict[str, Any] = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        return state

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the stage's lock; `waiting` is called once where another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def _snapshot(self, number: int) -> Path:
        return self.path / snapshot_name(number)


@dataclass(frozen=True)
class Store:
    """A folder that any number of runs may share.

    fresh: this run has to compute all that it reads. shipped: stages that come with kdbench, asked after the folder.
    """

    root: Path
    fresh: bool = False
    shipped: Path | None = field(default_factory=lambda: SHIPPED)
    _renewed: set[str] = field(default_factory=set)

    def stale(self, key: str) -> bool:
        """Whether stored work has to be done again: under `fresh`, the first time that its key is asked for."""
        if not self.fresh or key in self._renewed:
            return False
        self._renewed.add(key)
        return True

    @property
    def renders(self) -> Path:
        """Where images of synthetic domains are kept."""
        return self.root / "renders"

    def stage(self, key: str) -> StageFolder:
        """Return a stage's place."""
        shipped = self.shipped / key if self.shipped is not None and not self.fresh else None
        held = ShippedStage(shipped) if shipped is not None and shipped.is_dir() else None
        return StageFolder(self.root / "stages" / key, held)

    def note(self, kind: str, key: str) -> None:
        """Remember that something has been found to hold."""
        write_atomically(self.root / kind / key, b"")

    def is_noted(self, kind: str, key: str) -> bool:
        """Whether that is remembered."""
        return (self.root / kind / key).is_file()

    def evaluation(self, key: str) -> np.ndarray | None:
        """Return an evaluation's counts, if they are stored."""
        path = self._evaluation(key)
        if self.stale(key) or not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            counts: np.ndarray = stored["counts"]
        return counts

    def keep_evaluation(self, key: str, counts: np.ndarray) -> None:
        """Store an evaluation's counts."""
        save_atomically(self._evaluation(key), partial(np.savez_compressed, counts=counts))

    def _evaluation(self, key: str) -> Path:
        return self.root / "evaluations" / f"{key}.npz"
