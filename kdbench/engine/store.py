"""Finished and unfinished stages on disk, by content key. Files appear whole or not at all; a lock guards each key."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from kdbench.files import save_atomically, write_atomically

States = dict[str, dict[str, Tensor]]
"""Part name -> state dict."""
SEPARATOR = "::"


@dataclass(frozen=True)
class StageFolder:
    """One stage's place in the store: its kept points, its checkpoint while it runs, its summary once it is done."""

    path: Path

    @property
    def done(self) -> bool:
        """Whether the stage is finished; the summary is written last."""
        return (self.path / "stage.json").is_file()

    def summary(self) -> dict[str, Any]:
        """What the finished stage reported."""
        summary: dict[str, Any] = json.loads((self.path / "stage.json").read_text(encoding="utf-8"))
        return summary

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the stage as done and drops its checkpoint."""
        write_atomically(self.path / "stage.json", json.dumps(summary).encode())
        self._checkpoint.unlink(missing_ok=True)

    def clear(self) -> None:
        """Makes the stage unfinished. Its points stay for those who read them, until the same content replaces them."""
        (self.path / "stage.json").unlink(missing_ok=True)
        self._checkpoint.unlink(missing_ok=True)

    def save_point(self, number: int, states: States) -> None:
        """Keeps the trained parts as they are at a point of the stage."""
        flat = {
            # Copies, since parameters may share their memory (tied weights), which this format refuses.
            f"{part}{SEPARATOR}{name}": t.detach().cpu().clone(memory_format=torch.contiguous_format)
            for part, state in states.items()
            for name, t in state.items()
        }
        write_atomically(self._point(number), to_bytes(flat))

    def load_point(self, number: int, part: str) -> dict[str, Tensor]:
        """One part at a kept point."""
        prefix = f"{part}{SEPARATOR}"
        flat = load_file(self._point(number))
        return {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """All that a killed stage needs to continue as if nothing had happened."""
        save_atomically(self._checkpoint, partial(torch.save, state))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, if the stage was interrupted."""
        if not self._checkpoint.is_file():
            return None
        state: dict[str, Any] = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        return state

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Alone with this stage; `waiting` is called once where another process is at work on it."""
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

    def _point(self, number: int) -> Path:
        return self.path / f"point-{number}.safetensors"


@dataclass(frozen=True)
class Store:
    """A folder that any number of runs may share."""

    root: Path
    fresh: bool = False
    """Whether what this run reads has to be computed by this run."""
    _renewed: set[str] = field(default_factory=set)

    def stale(self, key: str) -> bool:
        """Whether stored work under a key has to be done again: under `fresh`, the first time that it is asked for."""
        if not self.fresh or key in self._renewed:
            return False
        self._renewed.add(key)
        return True

    @property
    def renders(self) -> Path:
        """Where drawn domains are kept."""
        return self.root / "renders"

    def stage(self, key: str) -> StageFolder:
        """A stage's place by its key."""
        return StageFolder(self.root / "stages" / key)

    def note(self, kind: str, key: str) -> None:
        """Remembers that something has been found to hold."""
        write_atomically(self.root / kind / key, b"")

    def is_noted(self, kind: str, key: str) -> bool:
        """Whether that is remembered."""
        return (self.root / kind / key).is_file()

    def evaluation(self, key: str) -> np.ndarray | None:
        """An evaluation's counts by key, if they are stored."""
        path = self._evaluation(key)
        if self.stale(key) or not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            counts: np.ndarray = stored["counts"]
        return counts

    def keep_evaluation(self, key: str, counts: np.ndarray) -> None:
        """Stores an evaluation's counts."""
        save_atomically(self._evaluation(key), partial(np.savez_compressed, counts=counts))

    def _evaluation(self, key: str) -> Path:
        return self.root / "evaluations" / f"{key}.npz"
