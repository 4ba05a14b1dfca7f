"""What the documents show is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench.cli import app
from kdbench.cli.listing import listing, render
from kdbench.data.datasets import ADAPTERS
from kdbench.data.datasets.adapter import whole_path
from kdbench.models.toy import SHIPPED, read_card
from kdbench.plugins import load_benchmark, load_method, method_names
from kdbench.protocol import MINI
from kdbench.records import read_record, record_files
from kdbench.report.boards import Board, boards
from kdbench.report.frame import read
from kdbench.tools.method_pages import paragraphs

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
        for rung in read_card(SHIPPED, "dinov2-l").ablation
    }


@pytest.fixture(scope="module")
def committed() -> dict[tuple[str, str], Board]:
    """The committed boards of protocol mini by pair and benchmark."""
    found = boards(read(None, ROOT / "results" / "reference" / MINI.id).frame)
    return {(board.pair, board.benchmark): board for board in found}


def tables_of(page: str, first: str) -> list[tuple[str, list[list[str]]]]:
    """Each table whose first column has that name, header first, with the paragraph before it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(rf"([^\n](?:[^\n]|\n(?!\n))*)\n\n(\| {re.escape(first)} \|(?:.|\n(?!\n))*)", text)
    return [
        (
            before,
            [
                [cell.strip() for cell in line.strip("|").split("|")]
                for line in table.splitlines()
                if set(line) - set("|:- ")
            ],
        )
        for before, table in found
    ]


def shown(value: float, seeds: int, usual: int, sign: str = "") -> str:
    number = f"{value:{sign}.1f}"
    return ("0.0" if number in ("+0.0", "-0.0") else number) + (f" ({seeds})" if seeds != usual else "")


def test_the_scores_of_the_mini_page_are_those_of_the_committed_boards(committed: dict[tuple[str, str], Board]) -> None:
    found = tables_of("mini.md", "row")
    assert len(found) == 3
    for before, (head, *rows) in found:
        teacher, student = re.findall(r"mini:([\w-]+)", before)
        usual = 5 if "five seeds unless" in before else 3
        names = {row[0] for row in rows}
        assert {"teacher", "student alone", "cwd", "logit_kd", "feature_kd", "gkd"} <= names
        if usual == 3:
            # The pairs on which a part of the catalogue ran show all of it.
            assert names - {"teacher", "student alone"} == {
                method for (pair, _), board in committed.items() if pair == f"{teacher}:{student}"
                for method in board.rows.index[board.rows.role == "distilled"]
            }  # fmt: skip
        for name, *scores in rows:
            for benchmark, score in zip(head[1:], scores, strict=True):
                held = committed[f"{teacher}:{student}", benchmark].rows
                row = held.loc[{"student alone": "baseline"}.get(name, name)]
                assert score == shown(row["mean"], len(row.seeds), usual), (name, benchmark)


def test_the_differences_of_the_mini_page_are_those_of_the_committed_boards(
    committed: dict[tuple[str, str], Board],
) -> None:
    ((_, (head, *rows)),) = tables_of("mini.md", "method")
    distilled = {name for board in committed.values() for name in board.rows.index[board.rows.role == "distilled"]}
    assert {row[0] for row in rows} == {method for method in distilled if "[" not in method}
    for method, *values in rows:
        for benchmark, value in zip(head[1:], values, strict=True):
            found = committed["dinov2-b:deit-s", benchmark].comparison.to_baseline
            known = shown(found.value[method], len(found.seeds[method]), 3, "+") if method in found.index else "-"
            assert value == known, (method, benchmark)


def test_the_ablations_of_the_mini_page_are_those_of_the_committed_boards(
    committed: dict[tuple[str, str], Board],
) -> None:
    ((_, (_, *rows)),) = tables_of("mini.md", "GKD")
    labels = {}
    for path in record_files(ROOT / "results" / "reference" / MINI.id):
        spec = read_record(path).spec
        if spec.resolved.method == "gkd":
            settings = ", ".join(f"`{setting}`" for setting in spec.passed["settings"])
            labels[settings] = f"gkd[{spec.resolved.variant}]" if spec.resolved.variant else "gkd"
    differences = committed["dinov2-b:deit-s", "c2a"].comparison.to_baseline
    assert {row[1] for row in rows} == set(labels)
    for _, settings, value in rows:
        found = differences.loc[labels[settings]]
        assert value == shown(found.value, len(found.seeds), 1, "+"), settings


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


def anchors(page: Path) -> set[str]:
    """What a page's headings are linked by (as GitHub makes it)."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))), ids=lambda path: path.name
)
def test_what_a_page_points_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^) ]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            to = page.parent / name if name else page
            assert to.exists(), target
            assert not anchor or anchor in anchors(to), target
