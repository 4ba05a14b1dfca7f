"""`kdbench.load_student`: a trained model from its record and the store, ready to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from kdbench.api import run_command
from kdbench.data.sources import DataSources
from kdbench.engine.evaluation import deploy, deployed_parts, predict
from kdbench.engine.grid import recorded_cell
from kdbench.engine.plan import RunContext, recorded_plan
from kdbench.engine.store import Store
from kdbench.errors import KdbenchError
from kdbench.files import default_store
from kdbench.models.toy import ToyModels
from kdbench.models.weights import PretrainedModels
from kdbench.progress import Silent
from kdbench.protocol import Protocol
from kdbench.records import Record, read_record
from kdbench.spec import recorded_protocol


class DeployedModel(nn.Module):
    """The segmentor that a cell evaluated: its method's deployed student, or the teacher in the teacher's own cell.

    classes: names of the label map's values 0, 1, ... palette: their colours.
    """

    def __init__(
        self,
        model: nn.Module,
        protocol: Protocol,
        classes: tuple[str, ...],
        palette: tuple[tuple[int, int, int], ...],
    ) -> None:
        super().__init__()
        self.model, self.protocol, self.classes, self.palette = model, protocol, classes, palette

    def forward(self, image: Tensor) -> Any:
        """Return the model's SegOutput for images (B, 3, H, W) in [0, 1], without sliding windows."""
        return self.model(image)

    @torch.no_grad()
    def predict(self, image: Tensor | Image.Image | str | Path) -> Tensor:
        """Return the classes (H, W) or (B, H, W) int64 of an image at its own size, by the protocol's sliding windows.

        Args:
            image: (3, H, W) or (B, 3, H, W), uint8 or float in [0, 1]; or a PIL image, or a picture's file. Images of
                about the protocol's image_size were tested; others may be segmented worse.
        """
        tensor = _as_tensor(image)
        device = next(self.parameters()).device
        images = tensor[None] if tensor.ndim == 3 else tensor
        scaled = images.to(device).float().div(255) if images.dtype == torch.uint8 else images.to(device).float()
        mixed = self.protocol.precision == "bf16-mixed"
        was_training = self.training
        self.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            classes = predict(self.model, scaled, self.protocol.evaluation, (images.shape[-2], images.shape[-1]))
        self.train(was_training)
        return classes[0] if tensor.ndim == 3 else classes


def load_student(
    record: Record | str | Path, store: str | Path | None = None, weights_dir: str | Path | None = None
) -> DeployedModel:
    """Return the model that a record's cell evaluated, on the CPU, with its last snapshot's weights from the store.

    Args:
        record: A record, or its file.
        store: Where the run kept its stages; the default store where it is left out.
        weights_dir: As --weights-dir, for protocols with real models.

    Raises:
        KdbenchError: the record is of a failed cell, or the store lacks a stage; the text says what computes it.
    """
    found = record if isinstance(record, Record) else read_record(Path(record))
    cell = found.spec.resolved
    if found.result is None:
        raise KdbenchError(f"the record of {cell.id.label} is of a failed cell: {found.error}")
    protocol = recorded_protocol(cell.protocol, found.spec.passed)
    place = Store(Path(store) if store is not None else default_store())
    models = (
        ToyModels()
        if protocol.model_set != "pretrained"
        else PretrainedModels(Path(weights_dir) if weights_dir else None)
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    context = RunContext(protocol, DataSources(protocol, place.renders), place, fabric, Silent(), models)
    plan = recorded_plan(context, recorded_cell(cell, found.spec.passed, models), found.result.stages)
    read = {plan.final[part].key for part in deployed_parts(plan)}
    for stage in plan.stages:
        if stage.folder.summary is None and any(key.startswith(stage.key) for key in read):
            raise KdbenchError(
                f"the store {place.root} lacks stage '{stage.stage.name}' of {cell.id.label}. Compute it, then load "
                f"the record that is written: {run_command(found, [cell.seed])} --store {place.root}"
            )
    labels = plan.cell.benchmark.labels
    return DeployedModel(deploy(context, plan), protocol, labels.classes, labels.palette).eval()


def _as_tensor(image: Tensor | Image.Image | str | Path) -> Tensor:
    if isinstance(image, str | Path):
        image = Image.open(image)
    tensor = image if isinstance(image, Tensor) else pil_to_tensor(image.convert("RGB"))
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise KdbenchError(f"an image has the shape (3, H, W) or (B, 3, H, W), and this one {tuple(tensor.shape)}.")
    if tensor.dtype != torch.uint8 and not (tensor.is_floating_point() and tensor.min() >= 0 and tensor.max() <= 1):
        raise KdbenchError(f"an image is uint8, or float in [0, 1]; this one is {tensor.dtype} up to {tensor.max():g}.")
    return tensor
