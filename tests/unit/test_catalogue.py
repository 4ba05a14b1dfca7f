"""The methods' page: sections of docstrings, equations, the options that a label stands for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from kdbench.files import write_atomically
from kdbench.method import Method, MethodConfig
from kdbench.plugins import load_method
from kdbench.protocol import MINI
from kdbench.records import read_record, record_files
from kdbench.spec import make_config
from kdbench.tools.method_pages import document, sections

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


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


def test_every_label_of_a_record_stands_with_the_options_that_make_it(tmp_path: Path) -> None:
    """Found in the page, the options give the record's options."""
    path = next(path for path in record_files(REFERENCE / MINI.id) if path.name == "gkd-s0.json")
    labels = {"half": {"token": "0.5"}, "bare": {"token": "0", "match": "mse"}}
    for label, settings in labels.items():
        record = read_record(path)
        passed = {**record.spec.passed, "label": label, "settings": [f"{k}={v}" for k, v in settings.items()]}
        options = make_config(load_method("gkd"), settings).model_dump(mode="json")
        resolved = record.spec.resolved.model_copy(update={"variant": label, "options": options})
        made = record.model_copy(
            update={"spec": record.spec.model_copy(update={"passed": passed, "resolved": resolved})}
        )
        write_atomically(tmp_path / made.path(), made.to_json().encode())
    (section,) = re.findall(r"^## gkd\n(.*?)(?=^## )", document(tmp_path), flags=re.DOTALL | re.MULTILINE)
    (line,) = re.findall(r"^Labels: (.*)\.$", section, flags=re.MULTILINE)
    shown = {}
    for options in re.findall(r"`([^`]*)`", line):
        *settings, sign, label = shlex.split(options)
        assert sign == "--as"
        assert set(settings[::2]) == {"--set"}
        shown[label] = dict(setting.split("=") for setting in settings[1::2])
    assert shown == labels
