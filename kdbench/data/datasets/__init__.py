"""Real data sets: one adapter each."""

from kdbench.data.datasets.adapter import Adapter
from kdbench.data.datasets.imagenet import IMAGENET
from kdbench.data.datasets.isprs import POTSDAM, VAIHINGEN
from kdbench.data.datasets.streets import ACDC, BDD100K, CAMVID, CITYSCAPES, GTAV, MAPILLARY, SYNTHIA, URBANSYN

_ADAPTERS = (
    GTAV, CITYSCAPES, BDD100K, MAPILLARY, ACDC, POTSDAM, VAIHINGEN, IMAGENET, CAMVID, SYNTHIA, URBANSYN,
)  # fmt: skip
ADAPTERS = {adapter.name: adapter for adapter in _ADAPTERS}

__all__ = ["ADAPTERS", "Adapter"]
