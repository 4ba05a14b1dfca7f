"""GTAV to Mapillary Vistas."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData

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
                # As GKD and Rein do; RobustNet's centre square of 1536 pixels gives other figures.
                overrides={"paper": ProtocolOverrides(InputSize(512, 1024, keep_ratio=True, halved=True))},
            ),
        ),
    ),
    proxy=PROXY,
    labels=CITYSCAPES,
)
