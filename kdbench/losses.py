"""What methods share: bringing maps to one size, divergences in log space and single precision, and adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.types import Features, FeatureSpec, Segmentor


def resize(map_: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize a map (B, C, h, w) to another grid, bilinear, align_corners False. A map that fits is returned itself."""
    if map_.shape[-2:] == size:
        return map_
    return F.interpolate(map_, size=size, mode="bilinear", align_corners=False)


def resize_as(map_: Tensor, other: Tensor) -> Tensor:
    """Resize a map to another map's grid."""
    return resize(map_, other.shape[-2:])


def same_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Resize two logit maps to the larger of their grids, so that no prediction is thrown away."""
    size = tuple(map(max, student.shape[-2:], teacher.shape[-2:]))
    return resize(student, size), resize(teacher, size)


def kl(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) along dim, with dim summed away.

    In log space, because the log of a softmax underflows to -inf once one entry peaks; in float32 also under autocast.
    """
    log_p = F.log_softmax(student.float() / temperature, dim)
    log_q = F.log_softmax(teacher.float() / temperature, dim)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim)


def pixel_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Hinton et al. 2014 at every pixel: KL over the classes of logits (B, K, h, w), mean over pixels."""
    return kl(student, teacher, temperature, dim=1).mean()


def channel_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Shu et al. 2021, eq. 3-4: KL over the positions of each channel, mean over B and the teacher's C."""
    return kl(student.flatten(2), teacher.flatten(2), temperature, dim=2).mean()


def labels_at(label: Tensor | None, size: tuple[int, ...]) -> Tensor:
    """Labels (B, H, W) at another grid, by nearest neighbour; 255 stays 255. Raises where there are none."""
    if label is None:
        raise KdbenchError("a loss reads labels, which its stage's phase withholds. Run the stage in Phase.TASK.")
    if label.shape[-2:] == size:
        return label
    return F.interpolate(label[:, None].float(), size=size, mode="nearest")[:, 0].long()


def other_classes(logits: Tensor, label: Tensor) -> Tensor:
    """Logits (B, K, h, w) of the K - 1 classes that are not the pixel's label (B, h, w)."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).view(1, -1, 1, 1).expand(-1, -1, *label.shape[1:])
    return logits.gather(1, others + (others >= label[:, None]))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in single precision, also under autocast, where sums over many positions or channels lose digits."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def last_maps(student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """Both last maps (B, C, h, w) in single precision, the student's on the teacher's grid."""
    return resize_as(student.final.float(), teacher.final), teacher.final.float()


def attention(map_: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w): each position's energy, an image's energies scaled to Euclidean norm one."""
    return F.normalize(map_.square().mean(1).flatten(1))


def matched_levels(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """Pair the levels of both networks, shallow to deep; where one has more, its shallowest are left out."""
    pairs = zip(reversed(student.levels), reversed(teacher.levels), strict=False)
    return list(pairs)[::-1]


def tokens(map_: Tensor) -> Tensor:
    """(B, C, h, w) as row-major tokens (B, h * w, C)."""
    return map_.flatten(2).transpose(1, 2)


class Projector(nn.Module):
    """Student channels to teacher channels, position by position.

    LayerNorm and a linear map for token networks, a 1x1 convolution without bias for convolutional ones: the two
    forms of the reference implementations (GKD and Proteus; CIRKD).
    """

    def __init__(self, inputs: int, outputs: int, convolutional: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if convolutional else nn.LayerNorm(inputs)
        self.linear = nn.Linear(inputs, outputs, bias=not convolutional)

    def forward(self, map_: Tensor) -> Tensor:
        """(B, C_s, h, w) to (B, C_t, h, w)."""
        projected: Tensor = self.linear(self.norm(map_.movedim(1, -1))).movedim(-1, 1)
        return projected


def align(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """A linear map of channels, position by position, where the widths differ."""
    return nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=bias)


def share(count: int, part: float) -> int:
    """Return floor(count x part)."""
    # Rounded to six digits first, so that 0.29 of 100 is 29 and not the 28 of binary fractions.
    return int(round(count * part, 6))


def masked_images(batch: int, probability: float) -> int:
    """Return how many images of a batch are masked, the first ones: floor(B p), as in GKD's released code.

    Where that is none, one with chance B p, so that the masked part stays p: a process or a piece that memory holds may
    see one image at a time. Drawn on the processor, because the answer is a size that a GPU would be waited for.
    """
    return share(batch, probability) or int(torch.rand(()).item() < batch * probability)


def token_masks(batch: int, grid: tuple[int, int], masked: int, ratio: float, device: torch.device) -> Tensor:
    """Draw masks (B, h, w): the first images hide exactly floor(N r) tokens each, uniformly; the rest none."""
    count = grid[0] * grid[1]
    ranks = torch.rand(batch, count, device=device).argsort(1).argsort(1)
    mask = ranks < share(count, ratio)
    mask[masked:] = False
    return mask.reshape(batch, *grid)


def whole_and_masked(
    student: Segmentor, image: Tensor, mask: Tensor, masked: int, together: bool
) -> tuple[Features, Tensor]:
    """Return features of images (B, 3, H, W), and their last map (B, C, h, w) where the mask hides positions.

    masked: how many images, the first ones, have hidden positions. together: in one batch, in which the others stand
    once, as they look the same both times; not for networks with batch norms, where each pass has its own statistics.
    """
    if not together:
        return student.encode(image), student.encode(image, mask=mask).final
    count = len(image)
    both = student.encode(torch.cat((image, image[:masked])), mask=torch.cat((torch.zeros_like(mask), mask[:masked])))
    levels = tuple(level[:count] for level in both.levels)
    whole = Features(levels, both.final[:count], both.pooled[:count], {})
    return whole, torch.cat((both.final[count:], whole.final[masked:]))


def generator(width: int) -> nn.Sequential:
    """Two 3x3 convolutions with a ReLU between them, which regenerate a teacher's map (MGD, Af-DCD, ViTKD)."""
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))


class LevelProjectors(nn.Module):
    """A projector for each of the teacher's levels, for losses that feed them to the teacher's decoder.

    A student with more levels leaves out its shallowest; one with fewer has its deepest serve the rest.
    make: input and output channels -> module.
    """

    def __init__(self, student: FeatureSpec, teacher: FeatureSpec, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        count = len(teacher.channels)
        first = max(0, len(student.channels) - count)
        self.serves = [min(first + level, len(student.channels) - 1) for level in range(count)]
        self.each = nn.ModuleList(
            make(student.channels[ours], theirs) for ours, theirs in zip(self.serves, teacher.channels, strict=True)
        )

    def forward(self, levels: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """A student's levels in the teacher's widths, at the given sizes."""
        return tuple(
            resize(project(shrink(levels[ours], size)), size)
            for project, ours, size in zip(self.each, self.serves, sizes, strict=True)
        )


def shrink(map_: Tensor, size: tuple[int, ...]) -> Tensor:
    """Mean-pool a map by whole steps to the next size that is at least the given one."""
    steps = [max(1, ours // theirs) for ours, theirs in zip(map_.shape[-2:], size, strict=True)]
    return map_ if steps == [1, 1] else F.avg_pool2d(map_, steps)
