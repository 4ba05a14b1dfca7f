"""Evaluates models with detectron2's evaluator."""

from __future__ import annotations

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import SemSegEvaluator
from torch import Tensor, nn

from kdbench.benchmark import LabelSpace
from kdbench.data.domainset import DomainSet
from kdbench.engine.evaluation import predict
from kdbench.errors import KdbenchError
from kdbench.integrations.detectron2.catalog import load_label, read_sample, register_samples, unregister
from kdbench.protocol import Evaluation
from kdbench.types import IGNORE


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: DomainSet,
    labels: LabelSpace,
    evaluation: Evaluation,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Return SemSegEvaluator's scores in percent (`mIoU`, `IoU-road`, ...) of the predictions that kdbench would score.

    A class that is predicted but nowhere in the ground truth has no IoU there, and IoU 0 in kdbench's own scores.
    """
    model.eval()
    device = device or torch.device("cpu")
    name = f"kdbench/{samples.domain}/evaluated"
    register_samples(name, samples, labels)
    try:
        evaluator = SemSegEvaluator(name, distributed=False, sem_seg_loading_fn=load_label)
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            scores = _scores(model, *read_sample(record["file_name"]), labels, evaluation, device)
            evaluator.process([record], [{"sem_seg": scores}])
        found: dict[str, float] = evaluator.evaluate()["sem_seg"]
        return found
    finally:
        unregister(name)


def _scores(
    model: nn.Module, image: Tensor, label: Tensor, labels: LabelSpace, evaluation: Evaluation, device: torch.device
) -> Tensor:
    """Return the prediction as scores (K, h, w), 1 for the predicted class: SemSegEvaluator takes their argmax."""
    classes = len(labels)
    if bool(((label >= classes) & (label != IGNORE)).any()):
        raise KdbenchError(f"a label has classes beyond the {classes} of '{labels.name}'. Give its own label space.")
    scaled = image[None].to(device).float().div_(255)
    predicted = predict(model, scaled, evaluation, (label.shape[-2], label.shape[-1]))
    return (predicted == torch.arange(classes, device=device).view(-1, 1, 1)).byte()
