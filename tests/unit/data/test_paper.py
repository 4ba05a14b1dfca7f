"""The paper's protocol with real architectures and random weights, cut down to a few steps of 224 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kdbench import protocol as protocols
from kdbench.cli import app
from kdbench.models import registry
from kdbench.models.backbones import build_pretrained
from kdbench.models.registry import find_model
from kdbench.models.segmentor import seeded
from kdbench.protocol import PAPER, DistillationViews, Evaluation, Protocol, SegmentationViews
from kdbench.records import read_record
from kdbench.types import Phase

# DINOv2's own names; DeiT's distilled file is known by the model's.
FILES = {"dinov2-s": "dinov2_vits14_pretrain.pth", "deit-s": "deit-s.pth", "resnet18": "resnet18.pth"}


def shortened(decoder: str) -> Protocol:
    """PAPER with two steps a phase, one labelled point kept and small windows; all other numbers as they are."""
    recipes = {}
    for phase, recipe in PAPER.recipes.items():
        views: Any = DistillationViews(crop=224) if not phase.labelled else SegmentationViews(crop=224)
        recipes[phase] = recipe.model_copy(update={"steps": 2, "epochs": 0, "batch": 2, "augmentation": views})
    return PAPER.model_copy(
        update={
            "decoder": decoder, "recipes": recipes, "snapshots": (1.0,), "precision": "32-true",
            "evaluation": Evaluation(window=(224, 224), stride=(224, 224), batch=2),
        }
    )  # fmt: skip


def write_weights(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in set(names) & set(FILES):
        encoder = seeded(lambda name=name: build_pretrained(find_model(name)), "weights", name)
        torch.save(encoder.body.state_dict(), folder / FILES[name])


@pytest.mark.slow
@pytest.mark.parametrize(("student", "decoder"), [("deit-s", "mask2former"), ("resnet18", "light"), ("mine", "light")])
def test_gkd_runs_through_all_of_its_phases(
    trees: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str, decoder: str
) -> None:
    trees.make("gtav", "cityscapes", "imagenet")
    monkeypatch.setattr(registry, "REGISTERED", {})
    registry.register_model("mine", lambda: nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU()))
    write_weights(tmp_path / "weights", "dinov2-s", student)
    monkeypatch.setitem(protocols.PROTOCOLS, "paper", shortened(decoder))
    done = CliRunner().invoke(
        app,
        ["run", "--method", "gkd", "--pair", f"dinov2-s:{student}", "--benchmark", "g2c", "--protocol", "paper",
         "--data-root", str(trees.root), "--weights-dir", str(tmp_path / "weights"), "--workers", "0",
         "--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = read_record(next((tmp_path / "results").rglob("gkd-s0.json")))
    assert record.result is not None
    assert [stage.phase for stage in record.result.stages] == [Phase.PROXY, Phase.SOURCE, Phase.TASK]
    assert [stage.data for stage in record.result.stages] == [{"proxy": "real"}, {"gtav": "real"}, {"gtav": "real"}]
    assert record.spec.resolved.model_set == "pretrained"
    assert sum(domain.confusion.sum() for domain in record.result.domains) > 0
    # Every image is scored at its label's size, whatever the windows.
    assert {domain.role for domain in record.result.domains} == {"target"}
