"""ACDC (adverse conditions for driving): a part is a condition and a split, e.g. `night/val`; tests are not public."""

from __future__ import annotations

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout
from kdbench.data.datasets.labels import identity
from kdbench.types import IGNORE

_STEM = r"(?P<condition>fog|night|rain|snow)/(?P<split>train|val)/(?P<sequence>[^/]+)/(?P<stem>[A-Z0-9]+_frame_\d{6})"


ACDC = Adapter(
    name="acdc",
    title="ACDC, adverse conditions",
    folders=("acdc", "ACDC"),
    layouts=(
        FileLayout(
            image=rf"rgb_anon/{_STEM}_rgb_anon\.png",
            label=rf"gt/{_STEM}_gt_labelTrainIds\.png",
            values=(*range(19), IGNORE),
            tables={"evaluated": identity(19)},
            part="{condition}/{split}",
        ),
    ),
    home="https://acdc.vision.ee.ethz.ch (rgb_anon_trainvaltest.zip, gt_trainval.zip)",
    licence="ACDC licence: non-commercial research",
    classes=benchmark.CITYSCAPES,
    counts={
        **{f"{condition}/train": 400 for condition in ("fog", "night", "rain", "snow")},
        **{"fog/val": 100, "night/val": 106, "rain/val": 100, "snow/val": 100},
    },
    archives=("rgb_anon*.zip", "gt_trainval*.zip"),
    size=(1080, 1920),
    hints={r"\.nii(\.gz)?$": "this is the cardiac data set of the same name; ACDC for driving is another one."},
)
