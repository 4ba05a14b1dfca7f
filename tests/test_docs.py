"""What the documents show is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench.catalogue import paragraphs
from kdbench.cli import app
from kdbench.data.real import ADAPTERS
from kdbench.data.real.adapter import whole_path
from kdbench.listing import listing, render
from kdbench.models.shipped import Zoo
from kdbench.plugins import load_benchmark, load_method, method_names

ROOT = Path(__file__).parent.parent
WORLD = (ROOT / "docs" / "world.md").read_text(encoding="utf-8")


def test_the_table_of_domains_is_that_of_the_list() -> None:
    (table,) = re.findall(r"<!-- domains -->\n(.*?)<!-- end -->", WORLD, flags=re.DOTALL)
    assert table.strip() == render(listing("domains"), "markdown").strip()


def test_the_table_of_data_sets_is_that_of_the_list() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- datasets -->\n(.*?)<!-- end -->", page, flags=re.DOTALL)
    assert table.strip() == render(listing("datasets"), "markdown").strip()


def test_the_paths_of_the_trees_are_those_that_are_read() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- trees -->\n(.*?)<!-- end trees -->", page, flags=re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert {row[0] for row in rows} == set(ADAPTERS)
    for name, image, label in rows:
        layouts = [lay for lay in ADAPTERS[name].layouts if whole_path(lay.image).fullmatch(f"archive/{image}")]
        assert layouts, f"{name}: {image}"
        if label:
            ours = whole_path(layouts[0].image).fullmatch(image)
            theirs = whole_path(layouts[0].label or "").fullmatch(label)
            assert ours is not None
            assert theirs is not None, f"{name}: {label}"
            assert ours.groupdict() == theirs.groupdict()


def test_the_table_of_the_ladder_is_that_of_the_cards() -> None:
    page = (ROOT / "docs" / "mini.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| objective \|.*?(?=\n\n)", page, flags=re.DOTALL | re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    shown = {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert shown == {
        rung.objective: {f"{name}: source": score for name, score in rung.source.items()}
        | {f"{name}: targets": score for name, score in rung.targets.items()}
        for rung in Zoo().card("dinov2-l").ladder
    }


def test_the_page_of_the_methods_is_that_of_the_list() -> None:
    missing = {plugin.missing for plugin in map(load_method, method_names()) if plugin.missing}
    if missing:
        pytest.skip(f"optional: {', '.join(missing)}")
    done = CliRunner().invoke(app, ["list", "methods", "--format", "markdown"], catch_exceptions=False)
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").strip() == done.stdout.strip()


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_its_formula_its_deviations_and_its_source(name: str) -> None:
    method = load_method(name).method
    if method.role == "distilled":
        assert {"Formula", "Deviations", "Compared"} <= set(paragraphs(method))
        assert method.paper


@pytest.mark.parametrize("protocol", ["mini"])
def test_the_committed_boards_are_those_of_the_committed_records(protocol: str, tmp_path: Path) -> None:
    (page,) = (ROOT / "results" / "reference").glob(f"{protocol}-*/boards.md")
    command = ["leaderboard", "--protocol", protocol, "--format", "markdown", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert page.read_text(encoding="utf-8").strip() == done.stdout.strip()


def test_the_examples_of_the_world_run(tmp_path: Path) -> None:
    call, benchmark = re.findall(r"```python\n(.*?)```", WORLD, flags=re.DOTALL)
    found: dict[str, object] = {}
    exec(call, found)
    assert found["scene"].image.shape == (64, 128, 3)
    plugin = tmp_path / "fog_only.py"
    plugin.write_text(benchmark, encoding="utf-8")
    assert load_benchmark(str(plugin)).targets[0].adjust == {"fog": (0.02, 0.03)}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_pictures_and_pages_that_a_page_points_to_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).is_file(), target
