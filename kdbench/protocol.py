"""Holds every number of an experiment in one frozen object, named by a version that is raised by hand.

Users' own protocols are YAML files: `base`, the protocol that they start from, and what they change of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from kdbench.errors import KdbenchError, allowed, unknown
from kdbench.identity import digest
from kdbench.types import Phase


class Frozen(BaseModel):
    """An immutable value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentation(Frozen):
    """Random views of a training image: crop area, chances of a flip and of grey, strengths of the colour jitter."""

    kind: Literal["plain"] = "plain"
    scale: tuple[float, float] = (0.4, 1.0)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.0
    grey: float = 0.0


class DistillationViews(Frozen):
    """Views of unlabelled images as timm makes them, with the numbers of GKD's first stage."""

    kind: Literal["distillation"] = "distillation"
    crop: int = 512
    """Pixels on each side."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's name of a RandAugment policy."""
    erase: float = 0.25
    """Chance that a rectangle is erased."""


class SegmentationViews(Frozen):
    """Views of labelled images as mmsegmentation makes them, with the numbers of GKD's second stage."""

    kind: Literal["segmentation"] = "segmentation"
    crop: int = 512
    """Pixels on each side."""
    short_edges: tuple[int, ...] = tuple(int(512 * k / 10) for k in range(5, 21))
    """The image's short edge is one of these, but never so that the long one exceeds long_edge."""
    long_edge: int = 2048
    largest_class: float = 0.75
    """A crop of which one class has more than this share is drawn again, up to ten times."""
    flip: float = 0.5
    brightness: float = 32.0
    """Levels of 255, added."""
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36.0
    """Degrees."""


COPIES_UNIT = 256
"""Repeated augmentation rounds the images of an epoch down to a multiple of this (DeiT's sampler)."""


class Recipe(Frozen):
    """How one phase trains: AdamW, linear warm-up, then decay of the learning rate.

    schedule: cosine or polynomial (power 0.9) in every step; cosine-epochs-on-time changes between epochs only;
    cosine-epochs does so an epoch late, as timm's scheduler in GKD's loop. decay: the parameters with weight decay.
    matrices: none with one dimension (biases, norms); timm: the same, but mask tokens too; release: all but a decoder's
    norms and queries, as mmengine reads GKD's configuration, where the key of the backbone goes before that of norms.
    """

    steps: NonNegativeInt = 0
    batch: PositiveInt
    lr: PositiveFloat
    encoder_lr: NonNegativeFloat = 1.0
    """Factor on lr for an encoder that trains beside a decoder."""
    weight_decay: NonNegativeFloat = 0.05
    warmup: NonNegativeInt = 0
    schedule: Literal["cosine", "poly", "cosine-epochs", "cosine-epochs-on-time"] = "cosine"
    clip: PositiveFloat | None = None
    epochs: NonNegativeInt = 0
    """In place of steps."""
    repeats: PositiveInt = 1
    """Views of an image in an epoch (repeated augmentation, Hoffer et al., CVPR 2020). The epoch has as many views as
    the set has images, so it sees one image in `repeats`."""
    min_lr: float = 0.0
    """Learning rate at the end of a cosine."""
    decay: Literal["matrices", "timm", "release"] = "matrices"
    shared: bool = True
    """Whether several processes share a batch; where not, the first one trains and the others wait."""
    patch: int | None = None
    """Side of a transformer's patches in pixels, to which the encoder is resampled; None leaves its own."""
    augmentation: Annotated[Augmentation | DistillationViews | SegmentationViews, Field(discriminator="kind")] = (
        Augmentation()
    )

    def size(self, usual: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of a view. usual: the protocol's image size."""
        return usual if isinstance(self.augmentation, Augmentation) else (self.augmentation.crop,) * 2

    def epoch(self, images: int) -> int:
        """Return the steps of an epoch over a number of images; the last incomplete batch is left out."""
        views = images // COPIES_UNIT * COPIES_UNIT if self.repeats > 1 else images
        return max(1, (views or images) // self.batch)

    def length(self, images: int) -> int:
        """Return the steps of the whole phase over a number of images."""
        return self.steps or self.epochs * self.epoch(images)


class Evaluation(Frozen):
    """Sliding windows: their size and stride (height, width) in pixels, and images in a forward pass.

    scales, flip: test-time augmentation, off by default. Class probabilities are averaged over the image at each scale,
    and mirrored too with flip (mmsegmentation, SegTTAModel).
    """

    window: tuple[PositiveInt, PositiveInt]
    stride: tuple[PositiveInt, PositiveInt]
    batch: PositiveInt
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)
    flip: bool = False


class Protocol(Frozen):
    """An experiment's numbers. image_size: (height, width); real images are resized to cover it, ratio kept."""

    name: str
    version: int = 1
    """Raise it whenever a number of a shipped protocol changes (tests/unit/test_protocol.py holds every version's)."""
    summary: str
    model_set: Literal["toy-v2", "pretrained"]
    decoder: Literal["linear", "light", "mask2former"]
    image_size: tuple[int, int]
    train_images: int
    proxy_images: int
    val_images: int
    recipes: dict[Phase, Recipe]
    evaluation: Evaluation
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    imagenet_colours: tuple[str, ...] = ()
    """Models that see images normalised as ImageNet's in place of the normalisation that they were pretrained with."""
    native: bool = False
    """Whether all real training images are read at their own size and views are cut from that, as in the literature.
    Otherwise they are resized to cover image_size, and at most train_images and proxy_images of them are used."""
    label_maps: dict[str, str] = {}
    """Data set -> which of its published tables takes stored labels to classes, where it is not the default."""
    most_skipped: int = 10
    """Training files that may turn out to be unreadable, each replaced by the next one, before a stage stops."""
    resampling: Literal["bicubic", "pseudo-inverse"] = "bicubic"
    """How patch kernels and position embeddings change their size (kdbench.models.geometry)."""
    snapshots: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Where in a labelled stage its trained parts are kept; the last is the one that boards rank."""
    common: tuple[Phase, ...] = ()
    """Phases whose stages are common to all seeds: every draw in them is seed 0's. Their result is rounded to half
    precision, so that one computed anywhere can be shipped."""
    checkpoint_every: int = 50
    """Steps between the points from which a killed stage continues."""
    budget: Literal["published", "equal"] = "published"
    """published: every phase at its published length. equal: one factor on the steps of all of a method's phases, so
    that they take `student_forwards` in all."""
    student_forwards: int = 0
    """Images that pass through the student in all of a method's stages under the equal budget."""
    steps_scale: float = 1.0
    """Factor on the steps of every stage, for a rehearsal."""
    overrides_of: str = ""
    """The protocol whose overrides for data sets hold (RealData.under), where that is another one."""
    base: str = ""
    """The shipped protocol that a user's own was made from."""

    @property
    def shared_batches(self) -> dict[str, int]:
        """Return the batches that several processes share, by phase."""
        return {phase: recipe.batch for phase, recipe in self.recipes.items() if recipe.shared}

    @property
    def id(self) -> str:
        """Return name, version and the request's choices, e.g. `mini-v1-equal`.

        A protocol that differs from the shipped one of its name and version, or is a user's own, ends in a hash of what
        differs.
        """
        chosen: list[str] = [self.budget] * (self.budget != "published")
        chosen += [self.resampling] * (self.resampling != "bicubic")
        chosen += [f"steps{self.steps_scale:g}"] * (self.steps_scale != 1)
        chosen += [f"{dataset}.{table}" for dataset, table in sorted(self.label_maps.items())]
        own = _differences(self)
        return "-".join((self.name, f"v{self.version}", *chosen)) + (f"+{digest(own, 8)}" if own else "")


CHOICES = {"budget", "student_forwards", "resampling", "label_maps", "steps_scale"}
"""Fields that options of the command line choose, and that the id names itself."""
WORDS = {"summary", "checkpoint_every"}
"""Fields that change no number."""


def _differences(protocol: Protocol) -> dict[str, Any]:
    """Return the fields in which a protocol differs from the shipped one of its name, or that it was made from."""
    shipped = PROTOCOLS.get(protocol.base or protocol.name)
    ours, theirs = (_numbers(each) if each else {} for each in (protocol, shipped))
    named = {"base": shipped.id} if shipped and protocol.base else {}
    return {name: value for name, value in ours.items() if theirs.get(name) != value} | named


def _numbers(protocol: Protocol) -> dict[str, Any]:
    return protocol.model_dump(mode="json", exclude=CHOICES | WORDS | {"base", "name", "version", "overrides_of"})


# Hue as in the photometric distortion that the field trains with.
_VIEWS = Augmentation(hue=0.1)
MINI = Protocol(
    name="mini",
    version=2,
    summary="minutes on a laptop: small toy models; where the absolute numbers mean little",
    model_set="toy-v2",
    decoder="light",
    image_size=(64, 128),
    train_images=40,
    proxy_images=8000,
    val_images=48,
    recipes={
        Phase.FIT_TEACHER: Recipe(
            steps=600, batch=8, lr=4e-3, warmup=20, schedule="poly", clip=1.0, augmentation=_VIEWS
        ),
        Phase.PROXY: Recipe(steps=6000, batch=16, lr=1e-3, warmup=200, clip=1.0, augmentation=_VIEWS),
        Phase.SOURCE: Recipe(steps=1200, batch=8, lr=1e-3, warmup=20, clip=1.0, augmentation=_VIEWS),
        Phase.TASK: Recipe(
            steps=600,
            batch=8,
            lr=4e-3,
            encoder_lr=0.3,
            warmup=20,
            schedule="poly",
            clip=1.0,
            augmentation=_VIEWS,
        ),
    },
    evaluation=Evaluation(window=(64, 128), stride=(32, 64), batch=16),
    common=(Phase.PROXY,),
)
SMOKE = Protocol(
    name="smoke",
    version=3,
    summary="seconds: every path once, hardly anything learnt",
    model_set="toy-v2",
    decoder="light",
    image_size=(32, 64),
    train_images=24,
    proxy_images=24,
    val_images=8,
    recipes={
        Phase.FIT_TEACHER: Recipe(steps=6, batch=4, lr=1e-3, schedule="poly", clip=1.0),
        Phase.PROXY: Recipe(steps=8, batch=4, lr=1e-3, warmup=2, clip=1.0),
        Phase.SOURCE: Recipe(steps=6, batch=4, lr=5e-4, clip=1.0),
        Phase.TASK: Recipe(steps=8, batch=4, lr=1e-3, encoder_lr=0.3, schedule="poly", clip=1.0),
    },
    evaluation=Evaluation(window=(32, 64), stride=(16, 32), batch=8),
    common=(Phase.PROXY,),
    checkpoint_every=2,
)
# Numbers of GKD's released code; docs/gkd-errata.md says where its paper differs.
_TASK = Recipe(
    steps=40_000, batch=4, lr=1e-4, encoder_lr=0.1, schedule="poly", decay="release", shared=False, patch=16,
    augmentation=SegmentationViews(),
)  # fmt: skip
_DISTILLATION = Recipe(
    epochs=100, batch=512, lr=5e-4, min_lr=1e-5, schedule="cosine-epochs", repeats=3, decay="timm", patch=14,
    augmentation=DistillationViews(crop=224),
)  # fmt: skip
PAPER = Protocol(
    name="paper",
    version=2,
    summary="GKD's experiment as its code runs it: real data sets, pretrained models, Mask2Former",
    model_set="pretrained",
    decoder="mask2former",
    image_size=(512, 512),
    train_images=0,
    proxy_images=0,
    val_images=0,
    recipes={
        Phase.FIT_TEACHER: _TASK,
        Phase.PROXY: _DISTILLATION,
        Phase.SOURCE: _DISTILLATION.model_copy(
            update={
                "epochs": 300,
                "batch": 128,
                "lr": 1.25e-4,
                "patch": 16,
                "augmentation": DistillationViews(crop=512),
            }
        ),
        Phase.TASK: _TASK,
    },
    evaluation=Evaluation(window=(512, 512), stride=(341, 341), batch=8),
    precision="bf16-mixed",
    imagenet_colours=("eva02-s", "eva02-b", "eva02-l"),
    native=True,
    checkpoint_every=1000,
)
_AS_WRITTEN = {"repeats": 1, "schedule": "cosine-epochs-on-time"}
PAPER_TEXT = PAPER.model_copy(
    update={
        "name": "paper-text",
        "summary": "GKD's experiment with the numbers of its text where its code has others; else as paper",
        "overrides_of": "paper",
        "imagenet_colours": (),
        "recipes": {
            **PAPER.recipes,
            Phase.PROXY: PAPER.recipes[Phase.PROXY].model_copy(update=_AS_WRITTEN),
            Phase.SOURCE: PAPER.recipes[Phase.SOURCE].model_copy(update={**_AS_WRITTEN, "lr": 5e-4}),
        },
    }
)
PAPER_LITE = PAPER.model_copy(
    update={
        "name": "paper-lite",
        "version": 1,
        "summary": "the paper's data, models and views on one GPU in a day: shorter stages, a light decoder",
        "decoder": "light",
        "overrides_of": "paper",
        "recipes": {
            Phase.FIT_TEACHER: _TASK.model_copy(update={"steps": 20_000}),
            Phase.PROXY: PAPER.recipes[Phase.PROXY].model_copy(update={"epochs": 2, "schedule": "cosine"}),
            Phase.SOURCE: PAPER.recipes[Phase.SOURCE].model_copy(update={"epochs": 40, "schedule": "cosine"}),
            Phase.TASK: _TASK.model_copy(update={"steps": 20_000}),
        },
        "checkpoint_every": 500,
    }
)
"""Its proportions are 32 : 12 : 1 images of proxy, source (GTAV) and task, where the paper's are 800 : 47 : 1."""
PROTOCOLS = {protocol.name: protocol for protocol in (SMOKE, MINI, PAPER, PAPER_TEXT, PAPER_LITE)}


# Smoke and mini: twice what a single stage takes as published, about half of what distillation before the task takes.
# Paper: four times a single stage; a hundred epochs of ImageNet are out of any single stage's reach.
EQUAL_STUDENT_FORWARDS = {"smoke": 64, "mini": 9600, "paper": 640_000, "paper-text": 640_000, "paper-lite": 320_000}


Asked = str | Mapping[str, Any]
"""A protocol's name, the path of a YAML file, or such a file's content with a `name`."""
OWN = [name for name in Protocol.model_fields if name not in CHOICES | {"base", "version", "overrides_of"}]
"""Fields that a file can change."""


def read_protocol(asked: Asked) -> Asked:
    """Return the content of a YAML file, named as its stem unless it gives another name; anything else as it is."""
    if isinstance(asked, Mapping) or Path(asked).suffix not in (".yaml", ".yml"):
        return asked
    path = Path(asked)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise KdbenchError(f"the protocol file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise KdbenchError(
            f"the protocol file {path} has to hold `base: NAME` and what it changes, e.g. `val_images: 8`."
        )
    return {"name": path.stem, **content}


def find_protocol(
    asked: Asked,
    budget: str = "published",
    label_maps: Mapping[str, str] | None = None,
    resampling: str = "bicubic",
    steps_scale: float = 1.0,
) -> Protocol:
    """Return a shipped protocol or a user's own with what options choose, each of which changes its id.

    Raises:
        KdbenchError: an unknown name, a file with a fault, or another resampling where no patch changes its size.
    """
    asked = read_protocol(asked)
    if isinstance(asked, str) and asked not in PROTOCOLS:
        raise unknown("protocol", asked, PROTOCOLS, "The path of a YAML file works too.")
    protocol = PROTOCOLS[asked] if isinstance(asked, str) else _own_protocol(asked)
    changes: dict[str, Any] = {"label_maps": dict(label_maps)} if label_maps else {}
    if budget != "published":
        changes |= {"budget": budget, "student_forwards": EQUAL_STUDENT_FORWARDS[protocol.base or protocol.name]}
    if resampling != "bicubic":
        if all(recipe.patch is None for recipe in protocol.recipes.values()):
            raise KdbenchError(
                f"--resampling {resampling} says how patches change their size, and under protocol '{protocol.name}' "
                "none does. Leave it out, or add --protocol paper."
            )
        changes["resampling"] = resampling
    if steps_scale != 1:
        changes["steps_scale"] = steps_scale
    return protocol.model_copy(update=changes) if changes else protocol


def _own_protocol(content: Mapping[str, Any]) -> Protocol:
    """Return the protocol of a file's content, checked as the shipped ones are."""
    name, base = str(content.get("name", "")), str(content.get("base", ""))
    if base not in PROTOCOLS:
        raise unknown("protocol", base, PROTOCOLS, where=f"as the base of protocol '{name}'")
    if name in PROTOCOLS or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._]*", name):
        raise KdbenchError(
            f"a protocol of your own cannot be called '{name}': a name has letters, digits, dots and underscores, and "
            f"is none of {', '.join(PROTOCOLS)}. Give `name:` in the file, or rename it."
        )
    changes = {field: value for field, value in content.items() if field != "base"}
    for field in changes:
        if field not in OWN:
            raise unknown("field", field, OWN, where=f"of protocol '{name}'")
    shipped = PROTOCOLS[base]
    changes = {
        "summary": f"{shipped.id} with other {', '.join(field for field in changes if field != 'name')}"
    } | changes
    fixed = {"version": 1, "base": base, "overrides_of": shipped.overrides_of or base}
    try:
        own = Protocol.model_validate(_merged(shipped.model_dump(mode="json"), changes) | fixed)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise KdbenchError(f"{where} of protocol '{name}' cannot be {fault['input']!r}: {allowed(fault)}.") from error
    for phase, recipe in own.recipes.items():
        if not (recipe.steps or recipe.epochs):
            raise KdbenchError(
                f"recipes.{phase} of protocol '{name}' has neither steps nor epochs: give it one of them."
            )
    return own


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of both, theirs first; below, too, but not between values of another kind."""

    def both(mine: Any, other: Any) -> Any:
        fit = isinstance(mine, Mapping) and isinstance(other, Mapping)
        return _merged(mine, other) if fit and other.get("kind", mine.get("kind")) == mine.get("kind") else other

    return {**ours, **{name: both(ours.get(name), value) for name, value in theirs.items()}}


def as_yaml(protocol: Protocol) -> str:
    """Return every number of a protocol as such a file has them."""
    shown = {field: value for field, value in protocol.model_dump(mode="json").items() if field in OWN}
    return str(yaml.safe_dump(shown, sort_keys=False, width=120, default_flow_style=None))
