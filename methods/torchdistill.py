"""The losses of the package torchdistill that work on dense maps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import Projector, matched_levels, resize_as, same_grid, tokens
from kdbench.method import Method, MethodConfig, Stage
from kdbench.types import Batch, Features, PairSpec, Part, Phase, Segmentor, SegOutput


class TorchDistillConfig(MethodConfig):
    loss: Literal[
        "AffinityLoss", "ATLoss", "AltActTransferLoss", "ChSimLoss", "DISTLoss", "DISTPlusLoss", "FSPLoss", "FTLoss",
        "KDLoss", "KTALoss", "LogitStdKDLoss", "RKDLoss", "SPKDLoss",
    ] = Field(
        "KTALoss", description="the loss. Source: torchdistill's only distillation sample for segmentation"
    )  # fmt: skip
    weight: float | None = Field(
        None,
        ge=0,
        description="weight of the loss; by default RULES of methods/torchdistill.py. Source: torchdistill's "
        "sample of the loss",
    )


@dataclass(frozen=True)
class Rule:
    """What a loss reads, and its weight beside the task.

    weight: torchdistill's sample, on the loss divided by `extent`, which is what the loss grows with: a function of
    images, channels and positions of the teacher's map. settings: torchdistill's. images: with fewer there is nothing
    to compare. code: the part of the teacher's channels that its code has, where codes are compared; 0 for maps.
    """

    reads: Literal["logits", "both", "final", "levels"]
    weight: float
    extent: Callable[[int, int, int], float] = lambda b, c, n: 1.0
    project: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1
    code: float = 0


RULES = {
    # COCO: 10 channels of 60 x 60 positions, L1 50 and affinity 1.
    "KTALoss": Rule("final", 50 / math.sqrt(10 * 60 * 60), lambda b, c, n: 1 / math.sqrt(c * n)),
    "AffinityLoss": Rule("final", 10 / (60 * 60), lambda b, c, n: c / n),
    # ImageNet, ResNet-34 to ResNet-18: codes of 256 channels, half of the teacher's, and 7 x 7 positions.
    "FTLoss": Rule("final", 1000 / math.sqrt(256 * 7 * 7), lambda b, c, n: 1 / math.sqrt(c * n), code=0.5),
    # ImageNet: 14 x 14 positions in the larger of two layers.
    "ATLoss": Rule("levels", 1000 / (14 * 14), lambda b, c, n: 1 / n, project=False),
    "AltActTransferLoss": Rule("levels", 1.0, lambda b, c, n: c * n, settings={"margin": 1.0, "reduction": "mean"}),
    "FSPLoss": Rule("levels", 1.0, lambda b, c, n: c**1.5),
    # ImageNet: batches of 256.
    "ChSimLoss": Rule("final", 500 / 256, lambda b, c, n: 1 / b),
    "RKDLoss": Rule(
        "final", 1.0, project=False, settings={"dist_factor": 1.0, "angle_factor": 2.0, "reduction": "mean"}, images=3
    ),
    "SPKDLoss": Rule("final", 1.0, project=False, settings={"reduction": "batchmean"}, images=2),
    # ImageNet, beside half of the task loss: beta = 9, times T^2 = 4, which torchdistill leaves out without labels.
    "LogitStdKDLoss": Rule("logits", 9 * 4.0, project=False, settings={"temperature": 2.0, "alpha": 0}),
    "KDLoss": Rule("logits", 0.5, project=False, settings={"temperature": 1.0, "alpha": 0}),
    "DISTLoss": Rule("logits", 2.0, project=False),
    # The sample's iota is 1, which would drive the channels' correlation down.
    "DISTPlusLoss": Rule("both", 2.0, settings={"beta": 2.0, "gamma": 2.0, "iota": -1.0, "kappa": 1.0}),
}  # fmt: skip

Hooks = dict[str, dict[str, Any]]
"""What torchdistill's forward hooks collect: path -> "output" -> tensor."""

Call = tuple[Hooks, Hooks]
"""The student's and the teacher's hooks, as a loss takes them."""

PLACES = {"": "map", "_first": "before", "_second": "map"}
"""What torchdistill's pairs call a map, and the path that it is found under."""


def hooks(**maps: Any) -> Hooks:
    """Maps as if hooks had collected them."""
    return {path: {"output": map_} for path, map_ in maps.items()}


def from_package(package: str, module: str, name: str) -> Any:
    """A class of the package; ImportError with the repair where it is not installed."""
    try:
        return getattr(import_module(f"{package}.{module}"), name)
    except ImportError as error:
        raise ImportError(
            f'{package} cannot be imported ({error}). Repair: pip install "kdbench[{package}]"'
        ) from error


def make_criterion(kind: Callable[..., nn.Module], settings: Mapping[str, Any]) -> nn.Module:
    """A loss of torchdistill whose paths all lead to what `hooks` gives: logits, map, and before it the shallower."""
    roles = {
        f"{side}{role}": {"io": "output", "path": path}
        for side in ("student", "teacher")
        for role, path in PLACES.items()
    }
    given: dict[str, Any] = {}
    for parameter in inspect.signature(kind).parameters:
        if parameter.endswith("_pairs"):
            given[parameter] = {"pair": roles}
        elif parameter.endswith("_path"):
            given[parameter] = "logits" if "logit" in parameter else "map"
        elif parameter.endswith("_io"):
            given[parameter] = "output"
    return kind(**given, **settings)


class TorchDistill(Method[TorchDistillConfig]):
    r"""A loss of the package torchdistill that works on dense maps, called from the package itself.

    Formula:
    The loss $D$ is torchdistill's; $w$ is its weight and $e$ what it grows with (images, channels or positions).

    $$ L = w \sum_{maps} D(F_s, F_t) / e(F_t) $$

    On logits, pixel by pixel: KDLoss, LogitStdKDLoss, DISTLoss, DISTPlusLoss (also the last map). On the last map:
    KTALoss (mean absolute difference of maps, each divided by its root mean square), FTLoss (the same of codes),
    AffinityLoss, ChSimLoss, RKDLoss, SPKDLoss. On the levels: ATLoss, AltActTransferLoss, FSPLoss (each level with the
    next deeper one). FTLoss has a first stage on the source without labels, in which a paraphraser learns to give the
    teacher's map back from a code. The student's map is resized to the teacher's grid, and projected to its width
    except for ATLoss, RKDLoss and SPKDLoss.

    Deviations: adapters are projectors here; torchdistill's samples have convolutions with batch norms. KTALoss is
    KTA's loss alone: He et al. and torchdistill's sample compare the student with the teacher's code in an autoencoder
    that is trained first, and add AffinityLoss. The first stage of FTLoss has a mean where the sample has a sum.
    FSPLoss pairs levels where the sample pairs a stage's input and output; its sample and that of AltActTransferLoss
    come before the task, without it, and here every loss stands beside the task. The samples of KDLoss and
    LogitStdKDLoss halve the task loss. DISTPlusLoss adds the correlation of channels where it means 1 minus it, so iota
    is -1; its spatial relation runs over the images of a batch, so it is handed maps with positions in their place.
    SPKDLoss divides rows by the sum of their magnitudes (sp: Euclidean norm). SPKDLoss needs two images and RKDLoss
    three; AffinityLoss needs memory for all pairs of positions of every channel. HierarchicalContextLoss and VIDLoss
    are review_kd and vid.

    Compared: torchdistill 1.1.5 is what runs. Its AT, VID and review losses against those of at, vid and review_kd
    on random maps: equal to 2e-7.
    """

    paper = "Matsubara, torchdistill, RRPR 2021 (arXiv 2011.12913); KTALoss: He et al., Knowledge Adaptation, CVPR 2019"
    requires = "torchdistill"

    def __init__(self, config: TorchDistillConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self.rule = RULES[config.loss]
        kind = from_package(self.requires, "losses.mid_level", config.loss)
        self.criterion = make_criterion(kind, self.rule.settings)
        self.smallest_batch = self.rule.images
        self.reads_teacher_logits = self.rule.reads in ("logits", "both")
        if config.loss == "KTALoss":
            self.footnote = "KTA's loss alone: maps in place of codes, and no affinity (He et al. have both)"
        widths = pair.level_channels if self.rule.reads == "levels" else [pair.final_channels]
        self.projectors = nn.ModuleList(
            Projector(*both, pair.student.convolutional) if self.rule.project else nn.Identity() for both in widths
        )
        if self.rule.code:
            self._learn_codes(*pair.final_channels)

    def _learn_codes(self, student: int, teacher: int) -> None:
        """Factor transfer's modules: the teacher's map to its code and back, and the student's map to such a code."""
        paraphraser, translator = (
            from_package(self.requires, "models.wrapper", f"{name}4FactorTransfer")
            for name in ("Paraphraser", "Translator")
        )
        self.paraphraser = paraphraser(self.rule.code, teacher, uses_bn=False)
        self.projectors = nn.ModuleList([translator(student, int(self.rule.code * teacher), uses_bn=False)])

    def stages(self) -> tuple[Stage, ...]:
        if not self.rule.code:
            return super().stages()
        coder, read = frozenset({"paraphraser"}), frozenset({Part.TEACHER_ENCODER})
        first = Stage("paraphraser", Phase.SOURCE, trains=coder, uses=read, loss=self.paraphrase, student_forwards=0.0)
        joint = self.joint_stage()
        return (first, replace(joint, trains=joint.trains - coder))

    def paraphrase(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        """How far the teacher's last map comes back from its code: squared error, mean over everything."""
        map_ = teacher.encode(batch.image).final
        return {"paraphrase": F.mse_loss(self.paraphraser(map_).float(), map_.float())}

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        ours, theirs = student(batch.image), teacher.encode(batch.image)
        terms = student.task_loss(ours, batch.label)
        if self.reads_teacher_logits:
            calls = [self._on_pixels(ours, teacher.decode(theirs))]
        else:
            calls = self._on_maps(ours.features, theirs)
        weight = self.rule.weight if self.config.weight is None else self.config.weight
        # In single precision also under autocast: these are sums over many positions, channels or classes.
        with torch.autocast(batch.image.device.type, enabled=False):
            values = [self.criterion(*call) / self._extent(call[1]["map"]["output"]) for call in calls]
        return {**terms, self.config.loss: weight * torch.stack(values).sum()}

    def _on_pixels(self, ours: SegOutput, theirs: SegOutput) -> Call:
        """Every pixel a row; the last map, where it is read, with positions in front and images behind."""
        rows = [tokens(logits).flatten(0, 1).float() for logits in same_grid(ours.logits, theirs.logits)]
        if self.rule.reads == "logits":
            return hooks(map=rows[0]), hooks(map=rows[1])
        ((our_map, their_map),) = self._maps(ours.features, theirs.features)
        return (
            hooks(logits=rows[0], map=our_map.flatten(2).permute(2, 1, 0)),
            hooks(logits=rows[1], map=their_map.flatten(2).permute(2, 1, 0)),
        )

    def _on_maps(self, ours: Features, theirs: Features) -> list[Call]:
        """One call a map, or for FSP one for each two levels that follow each other (a single one twice)."""
        maps = self._maps(ours, theirs)
        if self.config.loss == "FSPLoss":
            steps = zip(maps, maps[1:] or maps, strict=False)
            return [(hooks(before=a[0], map=b[0]), hooks(before=a[1], map=b[1])) for a, b in steps]
        return [(hooks(map=a), hooks(map=b)) for a, b in maps]

    def _maps(self, ours: Features, theirs: Features) -> list[tuple[Tensor, Tensor]]:
        """The student's maps in the teacher's shapes, beside the teacher's, or the codes of both."""
        pairs = matched_levels(ours, theirs) if self.rule.reads == "levels" else [(ours.final, theirs.final)]
        projected = [project(a) for project, (a, _) in zip(self.projectors, pairs, strict=True)]
        goals = [self.paraphraser.encoder(b) if self.rule.code else b for _, b in pairs]
        return [(resize_as(a, b).float(), b.float()) for a, b in zip(projected, goals, strict=True)]

    def _extent(self, teacher: Tensor) -> float:
        images, channels, *grid = teacher.shape
        return self.rule.extent(images, channels, math.prod(grid))
