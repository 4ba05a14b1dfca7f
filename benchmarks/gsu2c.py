"""GTAV, SYNTHIA and UrbanSyn together to Cityscapes; real images only."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData

BENCHMARK = Benchmark(
    name="gsu2c",
    title="GTAV, SYNTHIA and UrbanSyn to Cityscapes",
    sources=(
        Domain("gtav", real=RealData("gtav", train=("all",))),
        Domain("synthia", real=RealData("synthia", train=("all",))),
        Domain("urbansyn", real=RealData("urbansyn", train=("all",))),
    ),
    targets=(
        Domain(
            "cityscapes",
            real=RealData("cityscapes", val=("val",), overrides={"paper": ProtocolOverrides(InputSize(512, 1024))}),
        ),
    ),
    proxy=PROXY,
    labels=CITYSCAPES,
)
