"""From text to requests: lists, settings, knobs, variants, identities."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdbench.errors import KdbenchError
from kdbench.identity import digest, seed_from
from kdbench.plugins import load_method, method_names
from kdbench.protocol import MINI, SMOKE
from kdbench.spec import assign_settings, make_config, split_list, variant


def test_lists_keep_their_order_and_drop_repeats() -> None:
    assert split_list("b, a,b,,c") == ("b", "a", "c")
    assert split_list("all", ["x", "y"]) == ("x", "y")
    with pytest.raises(KdbenchError, match="names nothing"):
        split_list(" , ")


def test_settings_go_to_their_method() -> None:
    assert assign_settings({"temperature": "2"}, ["cwd"]) == {"cwd": {"temperature": "2"}}
    found = assign_settings({"cwd.temperature": "2", "logit-kd.weight": "3"}, ["cwd", "logit_kd"])
    assert found == {"cwd": {"temperature": "2"}, "logit_kd": {"weight": "3"}}
    with pytest.raises(KdbenchError, match="unknown method"):
        assign_settings({"cwx.temperature": "2"}, ["cwd"])


def test_a_variant_is_what_is_off_its_default() -> None:
    cwd = load_method("cwd")
    assert variant(make_config(cwd, {})) == ""
    assert variant(make_config(cwd, {"temperature": "4"})) == ""
    assert variant(make_config(cwd, {"temperature": "2", "target": "both"})) == "target=both,temperature=2.0"
    assert variant(make_config(cwd, {"temperature": "2"}), "soft") == "soft"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "0"}, "greater than 0"),
        ({"temperature": "hot"}, "cannot be 'hot'"),
        ({"target": "nothing"}, "'logits', 'features' or 'both'"),
        ({"temprature": "1"}, "Did you mean 'temperature'"),
    ],
)
def test_a_wrong_knob_is_refused_with_its_limits(values: dict[str, str], message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        make_config(load_method("cwd"), values)


def test_every_knob_of_every_shipped_method_names_its_source() -> None:
    for name in method_names():
        fields = load_method(name).method.Config.model_fields
        assert all(field.description for field in fields.values()), name


def test_digests_and_seeds_are_the_same_in_every_process() -> None:
    code = "from kdbench.identity import *; print(digest({'b': 1, 'a': [2.5, None]}), seed_from(0, 'task', 'order', 3))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {f"{digest({'a': [2.5, None], 'b': 1})} {seed_from(0, 'task', 'order', 3)}"}
    assert seed_from(0, "a") != seed_from(0, "b")


def test_a_protocols_id_follows_every_number_but_not_its_summary() -> None:
    assert MINI.id.startswith("mini-")
    assert MINI.id != SMOKE.id
    assert MINI.model_copy(update={"summary": "other"}).id == MINI.id
    assert MINI.model_copy(update={"val_images": 49}).id != MINI.id
    assert MINI.model_copy(update={"snapshots": (1.0,)}).id != MINI.id
