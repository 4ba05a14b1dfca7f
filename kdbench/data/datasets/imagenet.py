"""ImageNet-1k, or any tree of one folder a class, as proxy: images alone, no label is ever read."""

from __future__ import annotations

from kdbench.data.datasets.adapter import Adapter, FileLayout

_FILE = r"(?P<category>[^/]+)/(?P<name>[^/]+)\.(?i:jpe?g|png|webp|bmp)"


IMAGENET = Adapter(
    name="imagenet",
    title="ImageNet-1k (or any folder of folders of images)",
    folders=("imagenet", "ImageNet", "imagenet-1k", "ILSVRC2012"),
    layouts=(
        FileLayout(rf"(?P<split>train|val)/{_FILE}"),
        # Any other tree of one folder a class; folders of these names are splits that lie flat.
        FileLayout(rf"(?!(?:train|val|test)/){_FILE}", part="train"),
    ),
    home="https://www.image-net.org (ILSVRC2012_img_train.tar)",
    licence="ImageNet terms: non-commercial research",
    counts={"train": 1281167, "val": 50000},
    hints={
        r"(^|/)val/[^/]+\.JPEG$": "the validation images lie flat; sort them into one folder a class.",
        r"ILSVRC2012_img_train\.tar$": "it holds a tar file a class; unpack it with `mkdir train && tar -xf "
        "ILSVRC2012_img_train.tar -C train && cd train && for f in *.tar; do mkdir ${f%.tar} && tar -xf $f -C "
        "${f%.tar} && rm $f; done`.",
    },
)
