"""Show amounts with three digits and a prefix."""

from __future__ import annotations


def amount(number: float, unit: str) -> str:
    """Format a number from a thousandth on: 3.2 T, 41 G, 6.7 m."""
    number *= 1000
    for prefix in ("m", "", "k", "M", "G", "T", "P", "E"):
        shown = f"{number:.3g}"
        # What is rounded to a thousand has the next prefix.
        if float(shown) < 1000 and (prefix != "m" or number):
            return f"{shown} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} Z{unit}"
