"""`python -m kdbench.cli`, for where the entry point is not installed."""

from kdbench.cli import main

main()
