"""What the documents show is what the code says: links, commands, examples and generated tables."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from kdbench.cli import app
from kdbench.cli.listing import listing, render
from kdbench.conformance import check_method
from kdbench.data.datasets import ADAPTERS
from kdbench.data.datasets.adapter import whole_path
from kdbench.engine.grid import Done
from kdbench.plugins import load_benchmark, load_method, method_names
from kdbench.protocol import MINI
from kdbench.report.agreement import agreements
from kdbench.report.boards import boards
from kdbench.report.frame import read
from kdbench.report.published import read_published

ROOT = Path(__file__).parent.parent
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a page's headings are linked by (as GitHub makes it)."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_points_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^) ]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            to = page.parent / name if name else page
            assert to.exists(), target
            assert not anchor or anchor in anchors(to), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    """The changelog names commands of its time."""
    if page.name == "CHANGELOG.md":
        return
    for line in re.findall(r"^(?: {4}|[A-Z_]+=\S+ )?kdbench +([a-z].*)$", page.read_text(encoding="utf-8"), re.M):
        words = re.split(r"  +|#", line)[0].split()
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        offered = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= offered, line


def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name).is_file() for name in ("index.html", "methods/index.html", "api/index.html"))


@pytest.mark.parametrize(("page", "what"), [("docs/world.md", "domains"), ("docs/data.md", "datasets")])
def test_a_generated_table_is_that_of_the_list(page: str, what: str) -> None:
    (table,) = re.findall(rf"<!-- {what} -->\n(.*?)<!-- end -->", text_of(page), flags=re.DOTALL)
    assert table.strip() == render(listing(what), "markdown").strip()


def test_the_page_of_the_methods_is_that_of_the_list() -> None:
    missing = {plugin.missing for plugin in map(load_method, method_names()) if plugin.missing}
    if missing:
        pytest.skip(f"optional: {', '.join(missing)}")
    done = CliRunner().invoke(app, ["list", "methods", "--format", "markdown"], catch_exceptions=False)
    assert text_of("docs/methods.md").strip() == done.stdout.strip()


def test_the_committed_boards_are_those_of_the_committed_records(tmp_path: Path) -> None:
    command = ["leaderboard", "--protocol", "mini", "--format", "markdown", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert text_of(f"results/reference/{MINI.id}/boards.md").strip() == done.stdout.strip()


def test_the_paths_of_the_trees_are_those_that_are_read() -> None:
    (table,) = re.findall(r"<!-- trees -->\n(.*?)<!-- end trees -->", text_of("docs/data.md"), flags=re.DOTALL)
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


@pytest.mark.parametrize("page", ["README.md", "docs/mini.md"])
def test_the_scores_of_a_page_are_those_of_the_committed_boards(page: str) -> None:
    found = boards(read(None, ROOT / "results" / "reference" / MINI.id).frame)
    committed = {(board.pair, board.benchmark): board.rows for board in found}
    tables = re.findall(r"([^\n](?:[^\n]|\n(?!\n))*)\n\n(\| row \|(?:.|\n(?!\n))*)", text_of(page))
    assert tables
    for before, table in tables:
        pair = ":".join(re.findall(r"mini:([\w-]+)", before))
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        for name, *scores in rows:
            for benchmark, score in zip(head[1:], scores, strict=True):
                row = committed[pair, benchmark].loc[{"student alone": "baseline"}.get(name, name)]
                assert score.partition(" (")[0] == f"{row['mean']:.1f}", (name, benchmark)


def test_the_agreement_of_the_readme_is_that_of_the_committed_records() -> None:
    found = agreements(read_published(), boards(read(None, ROOT / "results" / "reference" / MINI.id).frame))
    (held,) = (each for each in found if each.pair == "dinov2-b:deit-s")
    assert f"Kendall's tau is {held.tau:.2f} (p = {held.p:.2f})" in " ".join(text_of("README.md").split())


def test_the_method_of_the_readme_is_short_conforms_and_runs(
    run_cells: Callable[..., list[Done]], tmp_path: Path
) -> None:
    (text,) = python_of("README.md")
    assert len(text.strip().splitlines()) <= 30
    plugin = tmp_path / "cosine.py"
    plugin.write_text(text, encoding="utf-8")
    faults = [row for row in check_method(str(plugin)) if row[2]]
    assert not faults
    (done,) = run_cells(methods=(str(plugin),), pairs=("dinov2-b:deit-s",))
    assert done.record.status == "done"
    assert "cosine" in done.record.result.stages[0].losses


def test_the_examples_of_the_world_run(tmp_path: Path) -> None:
    call, benchmark = python_of("docs/world.md")
    found: dict[str, object] = {}
    exec(call, found)
    assert found["scene"].image.shape == (64, 128, 3)
    plugin = tmp_path / "fog_only.py"
    plugin.write_text(benchmark, encoding="utf-8")
    assert load_benchmark(str(plugin)).targets[0].adjust == {"fog": (0.02, 0.03)}
