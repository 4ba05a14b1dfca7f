"""What a gate finds, as a line for people, a JUnit file and GitHub annotations."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""
MESSAGE = "%\r\n"
"""What GitHub's workflow commands have escaped in a message."""

NOWHERE = Path(os.devnull)
"""A place without runs, for a reader of runs and reference that shall see one folder alone."""


class Outcome(StrEnum):
    """skip: nothing was there to look at, which is no failure."""

    OK = "ok"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Gate:
    """A gate that holds, or one thing that is wrong with it; what is wrong ends in the repair. file: where to look."""

    name: str
    outcome: Outcome
    detail: str
    file: Path | None = None

    @property
    def line(self) -> str:
        """As it is printed."""
        return f"{self.outcome:<4}  {self.name}: {' '.join(self.detail.split())}"


def annotation(gate: Gate) -> str:
    """GitHub's workflow command for an error; a file below the working folder is named relative to it."""
    properties = {"title": f"kdbench check: {gate.name}"}
    if gate.file:
        properties = {"file": os.path.relpath(gate.file)} | properties
    named = ",".join(f"{key}={_escaped(text, MESSAGE + ':,')}" for key, text in properties.items())
    return f"::error {named}::{_escaped(gate.detail, MESSAGE)}"


def _escaped(text: str, special: str) -> str:
    return text.translate({ord(character): f"%{ord(character):02X}" for character in special})


def junit(gates: Sequence[Gate]) -> bytes:
    """A JUnit report: a suite with one case a gate."""
    suite = ElementTree.Element(
        "testsuite",
        name="kdbench check",
        tests=str(len(gates)),
        failures=str(sum(gate.outcome == Outcome.FAIL for gate in gates)),
        errors="0",
        skipped=str(sum(gate.outcome == Outcome.SKIP for gate in gates)),
    )
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="kdbench.check", name=_legal(gate.name))
        if gate.outcome == Outcome.OK:
            ElementTree.SubElement(case, "system-out").text = _legal(gate.detail)
        else:
            kind = "failure" if gate.outcome == Outcome.FAIL else "skipped"
            ElementTree.SubElement(case, kind, message=_legal(gate.detail))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _legal(text: str) -> str:
    return ILLEGAL.sub("\ufffd", text)
