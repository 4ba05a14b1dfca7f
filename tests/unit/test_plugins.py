"""The folder is the registry; a broken file breaks nothing else; every way to bring a method is the same."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from kdbench import plugins
from kdbench.errors import KdbenchError
from kdbench.plugins import discover, load_all, load_benchmark, load_method

METHOD = '''"""A method."""
from kdbench.method import Method


class Mine(Method):
    """Mine."""
'''
BENCHMARK = """from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain

BENCHMARK = Benchmark("other", "Other", (Domain("a", "gtav"),), (Domain("b", "cityscapes"),), PROXY, CITYSCAPES)
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_dropped_into_the_folder_is_a_method_by_its_stem(tmp_path: Path) -> None:
    write(tmp_path, "my_way.py", METHOD)
    assert load_method("my_way", tmp_path).method.__name__ == "Mine"
    assert load_method("my-way", tmp_path).name == "my_way"


def test_two_files_of_one_stem_in_two_places_stay_apart(tmp_path: Path) -> None:
    for folder, idea in (("a", "First."), ("b", "Second.")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "same.py", METHOD.replace("Mine.", idea))
    first, second = (load_method(str(tmp_path / folder / "same.py")) for folder in "ab")
    assert (first.method.__doc__, second.method.__doc__) == ("First.", "Second.")


def test_two_plug_ins_of_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, "my_way.py", METHOD)
    write(tmp_path, "my-way.py", METHOD)
    with pytest.raises(KdbenchError, match=r"two plug-ins are named 'my_way': .*my-way\.py and .*my_way\.py"):
        discover("kdbench.methods", tmp_path)


def test_an_entry_point_is_a_plug_in_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "outside_package.py", METHOD + BENCHMARK)
    monkeypatch.syspath_prepend(tmp_path)
    for group in ("kdbench.methods", "kdbench.benchmarks"):
        points = [importlib.metadata.EntryPoint("other", "outside_package", group)]
        monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group, points=points: points)
        assert "other" in discover(group)
    assert load_benchmark("other").name == "other"
    points = [importlib.metadata.EntryPoint("by-class", "outside_package:Mine", "kdbench.methods")]
    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: points)
    assert load_method("by_class").method.__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def broken(:\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("raise RuntimeError('at import')\n", "RuntimeError: at import"),
        ("x = 1\n", "exactly one subclass of kdbench.method.Method; found none"),
        (METHOD + "\n\nclass Other(Method):\n    pass\n", "found Mine, Other"),
    ],
)
def test_a_broken_file_is_listed_with_its_error_and_breaks_nothing_else(
    tmp_path: Path, text: str, message: str
) -> None:
    write(tmp_path, "broken.py", text)
    write(tmp_path, "fine.py", METHOD)
    loaded, broken = load_all(discover("kdbench.methods", tmp_path), lambda name: load_method(name, tmp_path))
    assert list(loaded) == ["fine"]
    assert message in broken["broken"]
    assert "broken.py" in broken["broken"]
    assert "<frozen" not in broken["broken"]


def test_a_missing_file_and_a_benchmark_without_its_value_are_errors(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="there is no method file"):
        load_method(str(tmp_path / "nowhere.py"))
    write(tmp_path, "empty.py", "x = 1\n")
    with pytest.raises(KdbenchError, match="has to define BENCHMARK"):
        load_benchmark("empty", tmp_path)


def test_a_benchmark_file_is_a_benchmark(tmp_path: Path) -> None:
    write(tmp_path, "other.py", BENCHMARK)
    assert load_benchmark("other", tmp_path).title == "Other"
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(KdbenchError, match=r"two plug-ins are named 'other'"):
        load_benchmark(str(write(tmp_path / "elsewhere", "other.py", BENCHMARK)), tmp_path)
    with pytest.raises(KdbenchError, match="calls its benchmark 'other'; it has to be 'renamed'"):
        load_benchmark(str(write(tmp_path, "renamed.py", BENCHMARK)))
    with pytest.raises(KdbenchError, match=r"unknown benchmark 'othre'\. Did you mean 'other'"):
        load_benchmark("othre", tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("weight: nothing = 1", r"cannot be used: NameError: .*nothing.* \(at mine\.py, line 6, in MyConfig\)"),
        ("weight: float = Field(1.0, nothing)", r"mine\.py\) cannot be used: NameError: .*nothing.*line 6"),
    ],
)
def test_a_file_that_does_not_import_is_told_with_its_line(tmp_path: Path, config: str, message: str) -> None:
    text = (
        "from pydantic import Field\nfrom kdbench.method import Method, MethodConfig\n\n\n"
        f"class MyConfig(MethodConfig):\n    {config}\n\n\nclass Mine(Method[MyConfig]):\n    pass\n"
    )
    with pytest.raises(KdbenchError, match=message):
        load_method(str(write(tmp_path, "mine.py", text)))


def test_a_config_that_is_none_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    text = METHOD + "    class Config:\n        weight: float = 1.0\n"
    with pytest.raises(KdbenchError, match=r"mine\.py: the Config of Mine is no kdbench\.method\.MethodConfig\. Write"):
        load_method(str(write(tmp_path, "mine.py", text)))


def test_a_method_whose_optional_package_is_missing_loads_and_says_what_to_install(tmp_path: Path) -> None:
    plugin = load_method(str(write(tmp_path, "built_on.py", METHOD + "    requires = 'no_such_package'\n")))
    assert plugin.missing == "no_such_package"
    with pytest.raises(KdbenchError, match=r"needs the package no_such_package\. Repair: pip install no_such"):
        plugin.usable()
    assert load_method("gkd").usable().missing == ""
