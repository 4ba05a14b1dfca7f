"""Real data sets: one adapter each."""

from kdbench.data.datasets.acdc import ACDC
from kdbench.data.datasets.adapter import Adapter
from kdbench.data.datasets.bdd100k import BDD100K
from kdbench.data.datasets.camvid import CAMVID
from kdbench.data.datasets.cityscapes import CITYSCAPES
from kdbench.data.datasets.gtav import GTAV
from kdbench.data.datasets.imagenet import IMAGENET
from kdbench.data.datasets.isprs import POTSDAM, VAIHINGEN
from kdbench.data.datasets.mapillary import MAPILLARY
from kdbench.data.datasets.synthia import SYNTHIA
from kdbench.data.datasets.urbansyn import URBANSYN

ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        GTAV, CITYSCAPES, BDD100K, MAPILLARY, ACDC, POTSDAM, VAIHINGEN, IMAGENET, CAMVID, SYNTHIA, URBANSYN,
    )
}  # fmt: skip

__all__ = ["ADAPTERS", "Adapter"]
