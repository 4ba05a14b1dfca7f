"""How amounts are shown: three digits and a prefix."""

from __future__ import annotations


def amount(number: float, unit: str) -> str:
    """A number with a prefix: 3.2 T, 41 G, 6.7 m."""
    if 0 < number < 1:
        return f"{1000 * number:.3g} m{unit}"
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} Z{unit}"
