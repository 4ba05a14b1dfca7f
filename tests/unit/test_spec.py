"""From text to requests: lists, settings, options, variants, digests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.identity import digest, seed_from
from kdbench.plugins import load_method
from kdbench.spec import (
    RunSpec,
    assign_settings,
    make_config,
    parse_fraction,
    parse_seeds,
    parse_settings,
    split_list,
    variant,
)


@pytest.mark.parametrize(
    ("parse", "text", "parsed"),
    [
        (split_list, "b, a,b,,c", ("b", "a", "c")),
        (parse_seeds, "3,0-2,1", (3, 0, 1, 2)),
        (parse_fraction, "0.25", Fraction(1, 4)),
        (parse_settings, ["temperature=2", "cwd.a=b=c"], {"temperature": "2", "cwd.a": "b=c"}),
    ],
)
def test_text_is_parsed(parse: Callable[..., Any], text: Any, parsed: object) -> None:
    assert parse(text) == parsed


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (split_list, " , ", "names nothing"),
        (parse_seeds, "3-1", "seeds are whole numbers"),
        (parse_seeds, "3-", "seeds are whole numbers"),
        (parse_fraction, "0", "write a part of the labelled images"),
        (parse_fraction, "1/0", "write a part of the labelled images"),
        (parse_settings, ["temperature"], "write option=value"),
    ],
)
def test_wrong_text_is_refused_with_its_form(parse: Callable[..., Any], text: Any, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        parse(text)


def test_a_request_takes_text_and_a_record_keeps_it_as_text(tmp_path: Path) -> None:
    fields = {"methods": "gkd,cwd", "pairs": "dinov2-l:resnet50", "benchmarks": ("g2c",), "seeds": "0-1"}
    settings = {"settings": ["gkd.token=2"], "label_fraction": "1/16", "label_maps": ["mapillary=rein"]}
    spec = RunSpec.model_validate({**fields, **settings, "results": tmp_path, "store": tmp_path})
    assert (spec.methods, spec.seeds, spec.settings) == (("gkd", "cwd"), (0, 1), {"gkd.token": "2"})
    passed = spec.passed()
    assert {name: passed[name] for name in settings} == settings
    assert not {"results", "store", "data_root"} & set(passed)
    assert RunSpec(**{name: getattr(spec, name) for name in RunSpec.model_fields}) == spec


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
        (
            {"temperature": "0"},
            r"'temperature' of method 'cwd' cannot be '0': it has to be greater than 0\. The",
        ),
        ({"temperature": "hot"}, r"cannot be 'hot': it has to be a number\."),
        ({"feature_weight": "-1"}, r"cannot be '-1': it has to be 0 or more\."),
        ({"target": "nothing"}, "'logits', 'features' or 'both'"),
        ({"temprature": "1"}, "Did you mean 'temperature'"),
    ],
)
def test_a_wrong_option_is_refused_with_its_limits(values: dict[str, str], message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        make_config(load_method("cwd"), values)


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
