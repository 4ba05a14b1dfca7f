"""CamVid regrouped by drive: two drives by day to another day drive and to dusk.

The official split mixes the drives (dusk is in train and in test), so it cannot measure a shift. Its validation frames
are one stretch of a training drive: here they are held out as the source's own validation.
"""

from kdbench.benchmark import CAMVID, PROXY, Benchmark, Domain, RealData

BENCHMARK = Benchmark(
    name="camvid",
    title="CamVid, day to dusk and to another place",
    sources=(
        Domain("camvid-day", real=RealData("camvid", train=("0006R0/train", "0016E5/train"), val=("0016E5/val",))),
    ),
    targets=(
        Domain("camvid-dusk", real=RealData("camvid", val=("0001TP",))),
        Domain("camvid-other-drive", real=RealData("camvid", val=("Seq05VD",))),
    ),
    proxy=PROXY,
    labels=CAMVID,
)
