"""GTAV to BDD100K."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData

# All of GTAV trains, as in GKD and Rein, so none is left to test the source on.
_GTAV = RealData("gtav", train=("all",))

BENCHMARK = Benchmark(
    name="g2b",
    title="GTAV to BDD100K",
    sources=(Domain("gtav", synthetic="gtav", real=_GTAV),),
    targets=(
        Domain(
            "bdd100k",
            synthetic="bdd100k",
            real=RealData("bdd100k", val=("val",), overrides={"paper": ProtocolOverrides(InputSize(720, 1280))}),
        ),
    ),
    proxy=PROXY,
    labels=CITYSCAPES,
)
