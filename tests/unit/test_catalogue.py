"""The methods' page: sections of docstrings, equations, the options that a label stands for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kdbench.method import Method, MethodConfig
from kdbench.plugins import load_method
from kdbench.protocol import MINI
from kdbench.records import read_record, record_files
from kdbench.spec import make_config
from kdbench.tools.method_pages import document, sections

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def page() -> str:
    return document(REFERENCE)


def test_a_docstring_in_sections_keeps_its_lines_and_equations() -> None:
    class Named(Method[MethodConfig]):
        r"""An idea.

        Formula:
        Text.

        $$ L = a $$

        Compared: cls_KD's file on
        random maps.
        """

    assert sections(Named) == {
        "idea": "An idea.", "Formula": "Text.\n\n$$ L = a $$", "Compared": "cls_KD's file on\nrandom maps.",
    }  # fmt: skip


def test_every_label_of_a_committed_record_stands_with_the_options_that_make_it(page: str) -> None:
    """Found in the page, the options give the record's options."""
    (section,) = re.findall(r"^## gkd\n(.*?)(?=^## )", page, flags=re.DOTALL | re.MULTILINE)
    (line,) = re.findall(r"^Labels: (.*)\.$", section, flags=re.MULTILINE)
    shown = {}
    for options in re.findall(r"`([^`]*)`", line):
        *settings, sign, label = shlex.split(options)
        assert sign == "--as"
        assert set(settings[::2]) == {"--set"}
        shown[label] = dict(setting.split("=") for setting in settings[1::2])
    records = [read_record(path) for path in record_files(REFERENCE / MINI.id) if path.name.startswith("gkd@")]
    assert {record.spec.resolved.variant for record in records} == set(shown) != set()
    for record in records:
        cell = record.spec.resolved
        assert make_config(load_method("gkd"), shown[cell.variant]).model_dump(mode="json") == cell.options
