"""docs/boards.md names the numbers and the options that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from kdbench.cli import app
from kdbench.report.images import RESAMPLES
from kdbench.report.published import TOLERANCE
from kdbench.report.statistics import ENOUGH, LEVEL, POWER

PAGE = " ".join((Path(__file__).parents[3] / "docs" / "boards.md").read_text(encoding="utf-8").split())
WORDS = {1: "one", 5: "five"}


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    assert f"{RESAMPLES:,} resamples" in PAGE
    assert f"Ranks need {WORDS[ENOUGH]} paired seeds" in PAGE
    assert f"Below {WORDS[ENOUGH]} paired seeds nothing is resolvable" in PAGE
    assert f"{1 - LEVEL:.0%} over seeds".replace("%", " %") in PAGE
    assert f"corrected p is below {LEVEL}" in PAGE
    assert f"level {LEVEL} / m" in PAGE
    assert f"finds with {POWER:.0%} power".replace("%", " %") in PAGE
    assert f"within {WORDS[TOLERANCE]} point of the published number" in PAGE


def test_every_option_of_the_page_exists() -> None:
    """Asked of the command itself: what --help prints is wrapped and coloured as the environment has it."""
    commands = get_command(app).commands
    offered = {name for verb in ("leaderboard", "run") for each in commands[verb].params for name in each.opts}
    named = set(re.findall(r"--[a-z][a-z-]*", PAGE))
    assert named >= {"--classes", "--selection", "--published"}
    assert named <= offered
