"""Real data sets: one adapter each."""

from kdbench.data.real.acdc import ACDC
from kdbench.data.real.adapter import Adapter
from kdbench.data.real.bdd100k import BDD100K
from kdbench.data.real.camvid import CAMVID
from kdbench.data.real.cityscapes import CITYSCAPES
from kdbench.data.real.gtav import GTAV
from kdbench.data.real.imagenet import IMAGENET
from kdbench.data.real.isprs import POTSDAM, VAIHINGEN
from kdbench.data.real.mapillary import MAPILLARY
from kdbench.data.real.realset import RealSet
from kdbench.data.real.synthia import SYNTHIA
from kdbench.data.real.urbansyn import URBANSYN

ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        GTAV, CITYSCAPES, BDD100K, MAPILLARY, ACDC, POTSDAM, VAIHINGEN, IMAGENET, CAMVID, SYNTHIA, URBANSYN,
    )
}  # fmt: skip

__all__ = ["ADAPTERS", "Adapter", "RealSet"]
