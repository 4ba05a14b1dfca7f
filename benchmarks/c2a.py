"""Cityscapes to ACDC: night, snow, fog and rain."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData

CONDITIONS = ("night", "snow", "fog", "rain")
BENCHMARK = Benchmark(
    name="c2a",
    title="Cityscapes to ACDC",
    sources=(
        Domain(
            "cityscapes",
            synthetic="cityscapes",
            real=RealData(
                "cityscapes",
                train=("train",),
                val=("val",),
                overrides={"paper": ProtocolOverrides(InputSize(512, 1024))},
            ),
        ),
    ),
    targets=tuple(
        Domain(
            f"acdc-{condition}",
            synthetic=f"acdc-{condition}",
            real=RealData(
                "acdc", val=(f"{condition}/val",), overrides={"paper": ProtocolOverrides(InputSize(540, 960))}
            ),
        )
        for condition in CONDITIONS
    ),
    proxy=PROXY,
    labels=CITYSCAPES,
)
