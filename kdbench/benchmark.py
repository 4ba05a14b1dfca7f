"""What a benchmark is: source domains, target domains, a proxy domain and a label space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from kdbench.errors import KdbenchError

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """Classes by index with the colours of their usual pictures; 255 is ignored everywhere."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class InputSize:
    """The size of an evaluated image before sliding windows: exactly (height, width), or within it, the ratio kept.

    halved: image and label are halved first, and the label stays so.
    """

    height: int
    width: int
    keep_ratio: bool = False
    halved: bool = False


@dataclass(frozen=True)
class ProtocolOverrides:
    """What a protocol asks of a data set: the size of evaluated images; parts in place of the usual ones, if any."""

    size: InputSize | None = None
    train: tuple[str, ...] | None = None
    val: tuple[str, ...] | None = None


WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\{split\})")
"""What stands for parts of paths in a FilePatterns."""


@dataclass(frozen=True)
class FilePatterns:
    """Images and labels of a user's own, by the patterns of their paths under --data-root.

    `*` stands for a part of a name, `**/` for folders, `{split}` for the name of a part; an image and a label for which
    they stand for the same are a pair. labels None: images alone. space: the labels' classes; values: stored value ->
    class; ignored: other values that may be stored.
    """

    images: str
    labels: str | None = None
    space: LabelSpace | None = None
    values: Mapping[int, int] = field(default_factory=dict, hash=False)
    ignored: tuple[int, ...] = (255,)


@dataclass(frozen=True)
class RealData:
    """A data set under --data-root: its adapter's name in kdbench.data.datasets, and the parts that a domain uses.

    overrides: what a protocol of that name changes; other protocols resize images to their own size. patterns: its
    files, where it has no adapter.
    """

    dataset: str
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    overrides: Mapping[str, ProtocolOverrides] = field(default_factory=dict, hash=False)
    patterns: FilePatterns | None = None

    def under_protocol(self, protocol: str) -> ProtocolOverrides:
        """Return the parts and the size under a protocol of that name."""
        stated = self.overrides.get(protocol, ProtocolOverrides())
        train, val = (self.train if stated.train is None else stated.train), stated.val
        return replace(stated, train=train, val=self.val if val is None else val)


@dataclass(frozen=True)
class Domain:
    """Where images come from.

    synthetic: the domain of the built-in world that is drawn, if any; adjust: ranges that replace some of its own, by
    field (docs/world.md). real: the data set, if any.
    """

    name: str
    synthetic: str | None = None
    real: RealData | None = None
    adjust: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Benchmark:
    """Train on the sources, test on the targets, which no stage ever sees. The score is the mean over the targets."""

    name: str
    title: str
    sources: tuple[Domain, ...]
    targets: tuple[Domain, ...]
    proxy: Domain
    labels: LabelSpace

    def __post_init__(self) -> None:
        """Refuse a benchmark that would train on a target or that names two domains alike."""
        trained = {name for domain in (*self.sources, self.proxy) for name in _contents(domain, training=True)}
        names = [domain.name for domain in (*self.evaluated(), self.proxy)]
        faults = [
            f"target '{domain.name}' shares images with what is trained on"
            for domain in self.targets
            if any(_overlap(ours, theirs) for ours in trained for theirs in _contents(domain, training=False))
        ]
        faults += [f"domain '{name}' stands there twice" for name in {n for n in names if names.count(n) > 1}]
        if len(self.labels.palette) != len(self.labels):
            faults.append(f"label space '{self.labels.name}' has another number of colours than of classes")
        if faults:
            raise KdbenchError(f"benchmark '{self.name}': {'; '.join(faults)}.")

    def evaluated(self) -> Iterator[Domain]:
        """Yield every domain that may be scored: the targets, then the sources with their validation splits."""
        yield from self.targets
        yield from self.sources


def _overlap(ours: str, theirs: str) -> bool:
    """Return whether two names share images: they are equal, or one holds the other as `night` holds `night/val`."""
    return ours == theirs or ours.startswith(f"{theirs}/") or theirs.startswith(f"{ours}/")


def _contents(domain: Domain, training: bool) -> set[str]:
    """Return the names of all images of a domain under any protocol: what is drawn, and parts of its data set."""
    shown = {f"synthetic {domain.synthetic} {sorted(domain.adjust.items())}"} if domain.synthetic else set()
    if domain.real:
        for data in map(domain.real.under_protocol, ("", *domain.real.overrides)):
            files = domain.real.patterns.images if domain.real.patterns else domain.real.dataset
            shown |= {f"{files} {part}" for part in (data.train if training else data.val) or ()}
    return shown


CITYSCAPES = LabelSpace(
    "cityscapes-19",
    ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
     "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
     (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
     (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)  # fmt: skip
ISPRS = LabelSpace(
    "isprs-6",
    ("impervious surface", "building", "low vegetation", "tree", "car", "clutter"),
    ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)),
)
CAMVID = LabelSpace(
    "camvid-11",
    ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
     (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)  # fmt: skip
PROXY = Domain("proxy", synthetic="proxy", real=RealData("imagenet", train=("train",)))
