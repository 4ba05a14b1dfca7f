"""Real data sets: one adapter each."""

from kdbench.data.real.adapter import RealSet
from kdbench.data.real.camvid import CAMVID

ADAPTERS = {adapter.name: adapter for adapter in (CAMVID,)}

__all__ = ["ADAPTERS", "RealSet"]
