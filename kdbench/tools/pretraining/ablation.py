"""The objective ablation: what each pretraining objective gives a foundation toy model, probed as a frozen teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kdbench.engine.plan import RunContext
from kdbench.engine.runner import run_cell
from kdbench.errors import KdbenchError
from kdbench.metrics import role_miou
from kdbench.models.registry import TOY_MODELS, ModelSpec
from kdbench.models.toy import Card, ObjectiveScore, ToyModels, toy_card
from kdbench.plugins import load_benchmark
from kdbench.tools.pretraining.configs import ABLATION
from kdbench.tools.pretraining.pretrainer import Pretrainer, write_card


def ablate(pretrainer: Pretrainer, context: RunContext, benchmarks: Sequence[str]) -> Iterator[ObjectiveScore]:
    """Pretrain the smallest foundation model in each way, below the pretrainer's folder, and probe it."""
    for tried, config in ABLATION.items():
        folder = pretrainer.folder / tried.replace(" ", "")
        replace(pretrainer, folder=folder).train(config, "kdbench.tools.pretraining.ablation.ablate")
        there = replace(context, models=ToyModels(folder))
        scores = {name: _probe(there, config.spec, name) for name in benchmarks}
        yield ObjectiveScore(
            objective=tried,
            source={name: round(source, 1) for name, (source, _) in scores.items()},
            targets={name: round(target, 1) for name, (_, target) in scores.items()},
        )


def note_scores(folder: Path, scores: Sequence[ObjectiveScore]) -> list[Card]:
    """Write scores onto the cards of the toy models whose objective, or whose teacher's, is among them.

    A card tells of its objective and of those before it.
    """
    objectives, noted = [score.objective for score in scores], []
    cards = {name: toy_card(folder, name) for name in TOY_MODELS}
    for card in cards.values():
        first = card
        while first.teacher:
            first = cards[first.teacher]
        if first.objective in objectives:
            told = tuple(scores[: objectives.index(first.objective) + 1])
            noted.append(card.model_copy(update={"ablation": told}))
            write_card(folder, noted[-1])
    return noted


def _probe(context: RunContext, model: ModelSpec, benchmark: str) -> tuple[float, float]:
    """Return the mIoU on the source's own validation split, and the mean over the targets."""
    record = run_cell(context, context.make_cell(load_benchmark(benchmark), model)).record
    if record.status != "done":
        raise KdbenchError(f"probing {model.name} on {benchmark}: {record.error}")
    return role_miou(record, "source"), role_miou(record, "target")
