"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.engine.store import StageFolder, Store
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.records import StageSummary

SUMMARY = StageSummary(steps=9, images=36, student_forwards=0, losses={"a": [1.5]}, seconds=2.5, memory_mb=None)


def test_a_full_disk_is_an_error_with_a_repair_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "record.json"
    write_atomically(target, b"old")

    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(KdbenchError, match=r"no space left to write .*record\.json\. .*--store"):
        write_atomically(target, b"new content")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_stage_is_done_only_once_its_summary_is_written(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "stage")
    states = {"student.encoder": {"a.weight": torch.arange(4.0)}, "head": {"a.weight": torch.ones(2)}}
    folder.save_snapshot(0, states)
    folder.save_checkpoint({"step": 3})
    assert folder.summary is None
    assert folder.load_checkpoint() == {"step": 3}
    folder.finish(SUMMARY)
    assert folder.summary == SUMMARY
    assert folder.load_checkpoint() is None
    assert torch.equal(folder.load_snapshot(0, "head")["a.weight"], torch.ones(2))
    assert torch.equal(folder.load_snapshot(0, "student.encoder")["a.weight"], torch.arange(4.0))


def test_an_evaluation_is_found_again_and_under_fresh_only_what_the_run_has_counted_itself(tmp_path: Path) -> None:
    counts, store = np.arange(8).reshape(2, 2, 2), Store(tmp_path)
    assert store.evaluation("k") is None
    store.keep_evaluation("k", counts)
    assert np.array_equal(Store(tmp_path).evaluation("k"), counts)  # type: ignore[arg-type]
    fresh = Store(tmp_path, fresh=True)
    assert fresh.evaluation("k") is None
    fresh.keep_evaluation("k", counts + 1)
    assert np.array_equal(fresh.evaluation("k"), counts + 1)  # type: ignore[arg-type]


def test_a_summary_of_another_schema_makes_the_stage_unfinished(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    (tmp_path / "stage.json").write_text('{"steps": 9, "passes": 36}', encoding="utf-8")
    assert folder.summary is None


def test_tied_weights_are_kept_with_each_of_their_names(tmp_path: Path) -> None:
    module = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("first", "second")})
    module["second"].weight = module["first"].weight
    folder = StageFolder(tmp_path / "stage")
    folder.save_snapshot(0, {"head": module.state_dict()})
    held = folder.load_snapshot(0, "head")
    assert all(torch.equal(held[f"{name}.weight"], module["first"].weight) for name in ("first", "second"))


def test_a_second_process_waits_for_the_lock_and_says_so(tmp_path: Path) -> None:
    folder, said = StageFolder(tmp_path / "stage"), []
    inside, release = threading.Event(), threading.Event()

    def hold() -> None:
        with folder.locked(lambda: None):
            inside.set()
            release.wait(10)

    def waiting() -> None:
        said.append("waiting")
        release.set()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(10)
    with folder.locked(waiting):
        assert said == ["waiting"]
    holder.join()
