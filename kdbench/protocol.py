"""Every number of an experiment, in one frozen object. A protocol's id is its name and the hash of its content."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdbench.errors import unknown
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


class Recipe(Frozen):
    """How one phase trains: AdamW, linear warm-up, then cosine or polynomial decay to zero."""

    steps: int
    batch: int
    lr: float
    encoder_lr: float = 1.0
    """Factor on lr for an encoder that trains beside a decoder."""
    weight_decay: float = 0.05
    warmup: int = 0
    schedule: Literal["cosine", "poly"] = "cosine"
    clip: float | None = None
    augmentation: Annotated[Augmentation | DistillationViews | SegmentationViews, Field(discriminator="kind")] = (
        Augmentation()
    )


class Evaluation(Frozen):
    """Sliding windows (height, width) over an image at the protocol's size, and images a forward pass."""

    window: tuple[int, int]
    stride: tuple[int, int]
    batch: int


class Protocol(Frozen):
    """An experiment's numbers. image_size is (height, width); real images are resized to cover it, ratio kept."""

    name: str
    summary: str
    zoo: Literal["mini-v1"]
    decoder: str
    image_size: tuple[int, int]
    train_images: int
    proxy_images: int
    val_images: int
    recipes: dict[Phase, Recipe]
    evaluation: Evaluation
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    native: bool = False
    """Real training images are read at their own size, all of them, and views are cut from that: the experiments of the
    literature. Otherwise they are resized to cover image_size, and train_images and proxy_images are the most used."""
    label_maps: dict[str, str] = {}
    """Data set -> which of its published tables takes stored labels to classes, where it is not the default."""
    most_broken: int = 10
    """Training files that may turn out to be unreadable, each replaced by the next one, before a stage stops."""
    keep: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Where in a labelled stage its trained parts are kept; the last is the one that boards rank."""
    checkpoint_every: int = 50
    """Steps between the points from which a killed stage continues."""

    @property
    def id(self) -> str:
        """The name with the hash of every number that decides a result.

        Fields at their defaults are left out, so that a field which is added later leaves the ids of earlier results
        alone. A default that exists must therefore never change (tests/unit/test_protocol.py).
        """
        content = self.model_dump(mode="json", exclude={"summary", "checkpoint_every"}, exclude_defaults=True)
        kinds = {phase: recipe.augmentation.kind for phase, recipe in self.recipes.items()}
        return f"{self.name}-{digest([content, kinds], 8)}"


# Hue as in the photometric distortion that the field trains with.
_VIEWS = Augmentation(hue=0.1)
MINI = Protocol(
    name="mini",
    summary="minutes on a laptop: small stand-ins for the models; where the absolute numbers mean little",
    zoo="mini-v1",
    decoder="light",
    image_size=(64, 128),
    train_images=1000,
    proxy_images=3000,
    val_images=48,
    recipes={
        Phase.FIT_TEACHER: Recipe(steps=1400, batch=8, lr=4e-3, warmup=20, schedule="poly", augmentation=_VIEWS),
        Phase.PROXY: Recipe(steps=800, batch=8, lr=1e-3, warmup=20, augmentation=_VIEWS),
        Phase.SOURCE: Recipe(steps=300, batch=8, lr=1e-3, augmentation=_VIEWS),
        Phase.TASK: Recipe(
            steps=600, batch=8, lr=4e-3, encoder_lr=0.3, warmup=20, schedule="poly", augmentation=_VIEWS
        ),
    },
    evaluation=Evaluation(window=(64, 128), stride=(32, 64), batch=16),
)
SMOKE = Protocol(
    name="smoke",
    summary="seconds: every path once, hardly anything learnt",
    zoo="mini-v1",
    decoder="light",
    image_size=(32, 64),
    train_images=24,
    proxy_images=24,
    val_images=8,
    recipes={
        Phase.FIT_TEACHER: Recipe(steps=6, batch=4, lr=1e-3, schedule="poly"),
        Phase.PROXY: Recipe(steps=8, batch=4, lr=1e-3, warmup=2),
        Phase.SOURCE: Recipe(steps=6, batch=4, lr=5e-4),
        Phase.TASK: Recipe(steps=8, batch=4, lr=1e-3, encoder_lr=0.3, schedule="poly"),
    },
    evaluation=Evaluation(window=(32, 64), stride=(16, 32), batch=8),
    checkpoint_every=2,
)
PROTOCOLS = {protocol.name: protocol for protocol in (SMOKE, MINI)}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; an unknown one is an error that lists those that exist."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
