"""The methods' page: spellings, the options that a label stands for, what a share of a step means."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kdbench.method import Method
from kdbench.plugins import load_method
from kdbench.protocol import MINI
from kdbench.records import read_record, record_files
from kdbench.spec import make_config
from kdbench.tools.method_pages import document, paragraphs

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def page() -> str:
    return document(REFERENCE)


def test_names_at_the_start_of_a_paragraph_keep_their_spelling(page: str) -> None:
    class Named(Method):
        """An idea.

        Compared: cls_KD's file on
        random maps.
        """

    assert paragraphs(Named) == {"idea": "An idea.", "Compared": "cls_KD's file on random maps."}
    assert "**Compared:** cls_KD's " in page
    assert not re.search(r"Cls_KD|Hunto/|Mdistiller|\*\*Compared:\*\* Torchdistill", page)


def test_every_label_of_a_committed_record_stands_with_the_options_that_make_it(page: str) -> None:
    """Found in the page, the options give the record's knobs."""
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


def test_a_share_without_a_decoder_is_said_not_to_be_comparable(page: str) -> None:
    head = page.partition("\n## ")[0].replace("\n", " ")
    assert "its step has no decoder" in head
    assert "not comparable with the others" in head
