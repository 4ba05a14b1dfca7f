"""Where a run can be watched besides its JSON lines: trackers, as Lightning's loggers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from lightning.fabric.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from kdbench.errors import KdbenchError, unknown
from kdbench.spec import split_list

PROJECT = "kdbench"
DEFAULT: Final = "tensorboard"
NONE = "none"


@dataclass(frozen=True)
class Place:
    """Whose numbers a tracker gets: the results folder, where in it the cell's record lies (no suffix), its name."""

    results: Path
    path: Path
    name: str


class WandbRun(WandbLogger):  # type: ignore[misc]
    """W&B's logger, which leaves its run open for whoever logs next in the process."""

    def finalize(self, status: str) -> None:
        """Ends the run."""
        self.experiment.finish(exit_code=int(status != "success"))


class TrackioLogger(Logger):  # type: ignore[misc]
    """A run of Trackio, which has W&B's calls."""

    def __init__(self, project: str, name: str) -> None:
        self._project, self._name = project, name
        self._trackio = import_module("trackio")
        self._run = self._trackio.init(project=project, name=name)

    @property
    def name(self) -> str:
        """The project's."""
        return self._project

    @property
    def version(self) -> str:
        """The run's name."""
        return self._name

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """What the run's table shows; sent with the first numbers."""
        self._run.config.update(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers at a step."""
        self._run.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """Ends the run."""
        self._trackio.finish()


def logdir(results: Path) -> Path:
    """The folder of TensorBoard's files below the results."""
    return results / DEFAULT


def _tensorboard(place: Place) -> Logger:
    # What an earlier run wrote of the cell is told again by this one: from step 0 on it counts no more.
    return TensorBoardLogger(
        logdir(place.results), "", str(place.path), default_hp_metric=False, purge_step=0, flush_secs=10
    )


def _wandb(place: Place) -> Logger:
    return WandbRun(project=PROJECT, name=place.name, save_dir=place.results)


def _mlflow(place: Place) -> Logger:
    here = f"sqlite:///{place.results.resolve() / 'mlflow.db'}"
    return MLFlowLogger(PROJECT, place.name, os.environ.get("MLFLOW_TRACKING_URI", here))


def _trackio(place: Place) -> Logger:
    return TrackioLogger(PROJECT, place.name)


TRACKERS: dict[str, Callable[[Place], Logger]] = {
    DEFAULT: _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio,
}  # fmt: skip
"""By name, which is also that of the package and of the extra that installs it."""


def find_trackers(text: str | None) -> tuple[str, ...]:
    """The trackers that a comma-separated list names; for None the default one, if it is installed.

    Raises KdbenchError where a name is unknown or its package is not installed.
    """
    if text is None:
        return (DEFAULT,) if _installed(DEFAULT) else ()
    names = split_list(text)
    if names == (NONE,):
        return ()
    for name in names:
        if name == NONE:
            raise KdbenchError(f"--watch {text}: '{NONE}' stands alone. Leave it out, or the others.")
        if name not in TRACKERS:
            raise unknown("tracker (in --watch)", name, [*TRACKERS, NONE])
        if not _installed(name):
            raise KdbenchError(
                f"--watch {name}: the package {name} is not installed. Install it: {repair(name)}; or leave it out."
            )
    return names


def repair(name: str) -> str:
    """The command that installs a tracker's package."""
    return f"pip install {name}"


def _installed(name: str) -> bool:
    return find_spec(name) is not None


class Trackers:
    """The trackers of a run, one cell at a time. One that fails is named once and left out from then on."""

    def __init__(self, names: Sequence[str], results: Path, note: Callable[[str], None]) -> None:
        self._names, self._results, self._note = list(names), results, note
        self._open: dict[str, Logger] = {}

    def open(self, path: Path, name: str, parameters: Mapping[str, Any]) -> None:
        """A cell begins: where its record will lie below the results (no suffix), its name, and what it is."""
        for tracker in list(self._names):
            with self._or_without(tracker):
                self._open[tracker] = TRACKERS[tracker](Place(self._results, path, name))
                self._open[tracker].log_hyperparams(dict(parameters))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of the cell at a step, counted over all of its stages."""
        for tracker, logger in list(self._open.items()):
            with self._or_without(tracker):
                logger.log_metrics(metrics, step)

    def close(self, status: str = "failed") -> None:
        """The cell is over: "success" or "failed"."""
        for tracker in list(self._open):
            with self._or_without(tracker):
                self._open.pop(tracker).finalize(status)

    @contextlib.contextmanager
    def _or_without(self, tracker: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a server that is gone must not end hours of training
            self._names.remove(tracker)
            self._open.pop(tracker, None)
            self._note(f"{tracker} failed and is left out from here on: {type(error).__name__}: {error}")
