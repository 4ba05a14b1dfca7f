"""GTAV to Mapillary Vistas."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, CentreSquare, Domain, InputSize, RealData, Terms

# All of GTAV trains, as in GKD and Rein, so none is left to test the source on.
_GTAV = RealData("gtav", train=("all",))

BENCHMARK = Benchmark(
    name="g2m",
    title="GTAV to Mapillary Vistas",
    sources=(Domain("gtav", synthetic="gtav", real=_GTAV),),
    targets=(
        Domain(
            "mapillary",
            synthetic="mapillary",
            real=RealData(
                "mapillary",
                val=("val",),
                # Two published ways, which are never compared: GKD's and Rein's, and RobustNet's.
                under={
                    "paper": Terms(InputSize(512, 1024, keep_ratio=True, halved=True)),
                    "paper-1536": Terms(CentreSquare(1536)),
                },
            ),
        ),
    ),
    proxy=PROXY,
    labels=CITYSCAPES,
)
