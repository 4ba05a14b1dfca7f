"""The command line: arguments to a request, results to text. The only place that prints and exits.

torch is imported inside the verbs that compute, so that boards and help start at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from tabulate import tabulate

from kdbench import __version__
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.models.zoo import NAMED_PAIRS, parse_pair
from kdbench.places import default_reference, default_results, default_store
from kdbench.plugins import benchmark_names, load_all, load_benchmark, load_method, method_names
from kdbench.spec import RunSpec, split_list
from kdbench.types import Phase

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Look at the data.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
models_app = typer.Typer(no_args_is_help=True, help="The mini zoo's stand-ins.", rich_markup_mode=None)
app.add_typer(models_app, name="models")

Format = Literal["table", "markdown", "csv", "latex", "html", "json"]
Results = Annotated[Path | None, typer.Option(help="Where records are written and read. [results/runs]")]
StoreOption = Annotated[Path | None, typer.Option(help="Where finished stages are kept. [~/.cache/kdbench]")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the real data sets; without it, the built-in world.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma-separated.")]
ProtocolName = Annotated[str, typer.Option(help="smoke or mini.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="knob=value, or method.knob=value; repeatable.")]


def main() -> None:
    """The entry point: a KdbenchError is printed without a traceback, exit status 2."""
    try:
        app()
    except KdbenchError as error:
        _complain(str(error))
        sys.exit(error.status)
    except OSError as error:
        _complain(f"{error.strerror or error} ({error.filename})")
        sys.exit(1)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Knowledge distillation for domain-generalised semantic segmentation, under one protocol."""
    if show:
        _out(f"kdbench {__version__}")
        raise typer.Exit


@app.command()
def run(
    method: Annotated[str, typer.Option(help="Methods by name or file, comma-separated, or `all`.")],
    pair: Annotated[str, typer.Option(help="teacher:student, comma-separated, e.g. dinov2-l:resnet50.")],
    benchmark: Annotated[
        str, typer.Option(help="Benchmarks, comma-separated, or `all` that the world serves.")
    ] = "all",
    protocol: ProtocolName = "mini",
    data_root: DataRoot = None,
    seed: Seeds = "0",
    set_: Settings = None,
    as_: Annotated[str, typer.Option("--as", help="A label for the variant that --set makes.")] = "",
    device: Device = "auto",
    results: Results = None,
    store: StoreOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything again.")] = False,
    references: Annotated[bool, typer.Option(help="Also run the teacher and the undistilled student.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Write pictures of predictions side by side.")] = False,
) -> None:
    """Train, test and rank: the grid of methods, pairs, benchmarks and seeds. What is done already is skipped."""
    spec = RunSpec(
        methods=split_list(method, _usable_methods() if method == "all" else None),
        pairs=split_list(pair, NAMED_PAIRS),
        benchmarks=split_list(benchmark, _servable(data_root)),
        protocol=protocol,
        seeds=_seeds(seed),
        data_root=data_root,
        settings=tuple(set_ or ()),
        label=as_,
        device=device,
        results=results or default_results(),
        store=store or default_store(),
        fresh=fresh,
        references=references,
    )
    try:
        failed = _run(spec, dry_run, pictures)
    except KeyboardInterrupt:
        _complain("stopped. The same command continues where it was.")
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


def _run(spec: RunSpec, dry_run: bool, pictures: bool) -> int:
    from kdbench.display import progress_for
    from kdbench.engine.grid import describe, expand, make_lab, run_grid
    from kdbench.report.lines import result_line

    console = Console()
    lab = make_lab(spec, progress_for(console))
    cells = expand(spec, lab)
    if dry_run:
        for line in (_heading(lab.protocol, len(cells), spec), *describe(lab, cells)):
            _out(line)
        return 0
    console.print(_heading(lab.protocol, len(cells), spec), highlight=False, markup=False, soft_wrap=True)
    succeeded = []
    for done in run_grid(spec, lab, cells):
        if done.record.status == "done":
            succeeded.append(done.cell)
        console.print(result_line(done.record, done.cached), highlight=False, markup=False, soft_wrap=True)
    console.print()
    benchmarks = [cell.benchmark.name for cell in cells]
    _print_boards("table", None, spec.results, lab.protocol.id, benchmarks, list(spec.pairs), terminal=console)
    if pictures:
        from kdbench.engine.pictures import write_pictures

        for path in write_pictures(lab, succeeded, spec):
            _out(f"picture: {path}")
    return len(cells) - len(succeeded)


def _heading(protocol: Any, cells: int, spec: RunSpec) -> str:
    where = f"the data sets under {spec.data_root}" if spec.data_root else "the built-in synthetic world"
    return f"kdbench {__version__}: {cells} cells, protocol {protocol.id} ({protocol.summary}), {where}"


@app.command()
def leaderboard(
    protocol: Annotated[str | None, typer.Option(help="A protocol's name or id.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmarks, comma-separated.")] = None,
    pair: Annotated[str | None, typer.Option(help="teacher:student, comma-separated.")] = None,
    results: Results = None,
    format_: Annotated[Format, typer.Option("--format", help="How it is written.")] = "table",
    output: Annotated[Path | None, typer.Option(help="A file to write instead of the terminal.")] = None,
) -> None:
    """Tables of methods for every benchmark and pair, from the records of runs and the committed reference."""
    benchmarks = None if benchmark in (None, "all") else list(split_list(benchmark))
    pairs = None if pair in (None, "all") else list(split_list(pair))
    _print_boards(format_, output, results or default_results(), protocol, benchmarks, pairs, terminal=Console())


def _print_boards(
    format_: Format,
    output: Path | None,
    results: Path,
    protocol: str | None,
    benchmarks: list[str] | None,
    pairs: list[str] | None,
    terminal: Console,
) -> None:
    from kdbench.report import board, formats

    loaded = board.load(results, default_reference(), protocol=protocol, benchmarks=benchmarks, pairs=pairs)
    text = formats.render(format_, board.boards(loaded.entries), colour=output is None and terminal.is_terminal)
    for fault in loaded.faults:
        _complain(fault)
    if output is None:
        _out(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        _out(f"written: {output}")


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "benchmarks", "pairs", "models", "protocols", "datasets", "domains"],
        typer.Argument(help="What to list."),
    ],
    format_: Annotated[Literal["table", "markdown", "json"], typer.Option("--format")] = "table",
) -> None:
    """What there is: methods, benchmarks, pairs, models, protocols, data sets or the built-in world's domains."""
    from kdbench.listing import listing, render

    _out(render(listing(what), format_))


@app.command()
def check(
    results: Results = None,
    reference: Annotated[Path | None, typer.Option(help="Pinned records. [results/reference]")] = None,
) -> None:
    """Gates for CI: every record validates; pinned smoke cells, run again, agree. Exit status 1 on a failure."""
    from kdbench.gates import gates

    passed = True
    for gate in gates(results or default_results(), reference or default_reference()):
        passed &= gate.passed
        _out(f"{'ok  ' if gate.passed else 'FAIL'}  {gate.name}: {gate.detail}")
    if not passed:
        raise typer.Exit(1)


@data_app.command("causes")
def draw_causes(
    source: Annotated[str, typer.Argument(help="A domain of the built-in world; `kdbench list domains`.")],
    target: Annotated[str, typer.Argument(help="Another one of the same kind.")],
    index: Annotated[int, typer.Option(min=0, help="Which scene.")] = 4,
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-causes"),
) -> None:
    """A picture of a domain shift cause by cause: palette, texture, illumination, weather, sensor."""
    from kdbench.engine.preview import write_causes

    _out(f"picture: {write_causes(source, target, index, (128, 256), output)}")


@app.command()
def budgets(
    phase: Annotated[Phase, typer.Option(help="The phase whose steps vary.")],
    pair: Annotated[str, typer.Option(help="teacher:student, one.")],
    benchmark: Annotated[str, typer.Option(help="Benchmarks, comma-separated.")],
    method: Annotated[
        str, typer.Option(help="Methods, comma-separated; left out for fit_teacher, where the teacher's row is run.")
    ] = "",
    protocol: ProtocolName = "mini",
    seed: Seeds = "0",
    set_: Settings = None,
    device: Device = "auto",
    store: StoreOption = None,
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-budgets"),
) -> None:
    """mIoU against the steps of one phase, from a quarter to four times the protocol's: a table and a picture."""
    import pandas as pd

    from kdbench.display import progress_for
    from kdbench.engine.budgets import measure
    from kdbench.engine.grid import expand, make_lab
    from kdbench.report.charts import budget_curves

    parse_pair(pair)
    if not method and phase != Phase.FIT_TEACHER:
        raise KdbenchError(f"--phase {phase} needs --method: which methods' rows are run.")
    spec = RunSpec(
        methods=split_list(method) if method else (),
        pairs=(pair,),
        benchmarks=split_list(benchmark),
        protocol=protocol,
        seeds=_seeds(seed),
        settings=tuple(set_ or ()),
        device=device,
        results=output,
        store=store or default_store(),
        references=phase == Phase.FIT_TEACHER,
    )
    lab = make_lab(spec, progress_for(Console()))
    cells = [cell for cell in expand(spec, lab) if (cell.method is None) == (phase == Phase.FIT_TEACHER)]
    rows = []
    for point in measure(lab, cells, phase):
        rows.append(vars(point))
        _out(f"{point.method} {point.benchmark} s{point.seed}: {point.steps} steps, targets {point.targets:.1f}")
    table = pd.DataFrame(rows)
    output.mkdir(parents=True, exist_ok=True)
    name = "-".join([phase, pair.replace(":", "--"), *sorted({cell.name.replace(" · ", "-") for cell in cells})])
    table.round(2).to_csv(output / f"{name}.csv", index=False)
    title = f"Steps of {phase}, {', '.join(['mini:' + p for p in pair.split(':')])}, {' '.join(set_ or ())}"
    budget_curves(table, title, lab.protocol.recipes[phase].steps).savefig(output / f"{name}.png")
    _out(f"written: {output / name}.csv and .png")


@data_app.command()
def preview(
    benchmark: Annotated[
        str, typer.Option(help="Benchmarks, comma-separated, or `all` that the world serves.")
    ] = "all",
    protocol: Annotated[str, typer.Option(help="Sizes of images.")] = "mini",
    data_root: DataRoot = None,
    store: StoreOption = None,
    count: Annotated[int, typer.Option(min=1, max=12, help="Images a domain.")] = 4,
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-preview"),
) -> None:
    """A contact sheet of every domain of a benchmark: images with their labels, and the legend."""
    from kdbench.engine.preview import write_previews

    names = split_list(benchmark, _servable(data_root))
    for path in write_previews(names, protocol, data_root, store or default_store(), count, output):
        _out(f"picture: {path}")


@data_app.command()
def distances(
    kind: Annotated[
        Literal["all", "street", "aerial"], typer.Option(help="Which domains are compared with each other.")
    ] = "all",
    store: StoreOption = None,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-distances"),
) -> None:
    """How far apart the built-in world's domains lie: a reference network trained on each, tested on every other.

    Writes a matrix of mIoU (CSV) and its heat map (PNG) for each kind of domain.
    """
    from kdbench.display import progress_for
    from kdbench.engine.distances import Distances
    from kdbench.report.charts import heat_map

    measured = Distances(store or default_store(), device, progress_for(Console()))
    output.mkdir(parents=True, exist_ok=True)
    for name in ("street", "aerial") if kind == "all" else (kind,):
        matrix = measured.matrix(name)
        matrix.round(1).to_csv(output / f"distances-{name}.csv")
        heat_map(matrix, "trained on", "tested on", f"mIoU (%) of a reference network, {name} domains").savefig(
            output / f"distances-{name}.png"
        )
        _out(matrix.round(1).to_markdown())
        _out(f"written: {output}/distances-{name}.csv and .png")


@models_app.command("train")
def train_models(
    names: Annotated[str, typer.Argument(help="Stand-ins, comma-separated, or `all`; teachers first.")],
    store: StoreOption = None,
    output: Annotated[Path, typer.Option(help="A folder for the weights and their cards.")] = Path("kdbench-zoo"),
    device: Device = "auto",
) -> None:
    """Pretrain stand-ins of the mini zoo as those shipped were; the same command continues what was stopped."""
    from kdbench.display import progress_for
    from kdbench.pretraining.courses import COURSES, find_course
    from kdbench.pretraining.train import make_school

    console = Console()
    school = make_school(store or default_store(), output, device, progress_for(console))
    for course in [find_course(name) for name in split_list(names, list(COURSES))]:
        card = school.train(course)
        _out(f"{card.role}: {card.parameters / 1e6:.2f} M parameters, {card.seconds:.0f} s, sha256 {card.sha256[:16]}")


@models_app.command("verify")
def verify_models(
    weights_dir: Annotated[Path | None, typer.Option(help="A folder of stand-ins. [those shipped]")] = None,
) -> None:
    """Compare every stand-in's weights with its card and its architecture. Exit status 1 on a fault."""
    from kdbench.models.shipped import SHIPPED, Zoo
    from kdbench.models.zoo import ROLES

    zoo, faults = Zoo(weights_dir or SHIPPED), 0
    for name in ROLES:
        try:
            card = zoo.check(name)
            _out(f"ok    {name}: {card.bytes / 1e6:.2f} MB, sha256 {card.sha256}")
        except KdbenchError as error:
            faults += 1
            _out(f"FAIL  {error}")
    if faults:
        raise typer.Exit(1)


@models_app.command("ladder")
def climb_ladder(
    store: StoreOption = None,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-ladder"),
) -> None:
    """What each pretraining objective gives a foundation stand-in, label-free first: one row a rung."""
    from kdbench.display import progress_for
    from kdbench.engine.grid import make_lab
    from kdbench.pretraining.ladder import climb
    from kdbench.pretraining.train import make_school

    progress, place, names = progress_for(Console()), store or default_store(), _servable(None)
    request = RunSpec(methods=(), pairs=(), benchmarks=(), device=device, results=output, store=place)
    rows = []
    for rung in climb(make_school(place, output, device, progress), make_lab(request, progress), names, output):
        scores = {
            f"{n}: {k}": round(v[n], 1) for n in names for k, v in (("source", rung.source), ("targets", rung.targets))
        }
        rows.append({"objective": rung.objective, "seconds": round(rung.seconds), **scores})
        _out(f"{rung.objective}: targets " + ", ".join(f"{n} {rung.targets[n]:.1f}" for n in names))
    text = tabulate(rows, headers="keys", tablefmt="github")
    write_atomically(output / "ladder.md", (text + "\n").encode())
    _out(f"{text}\nwritten: {output / 'ladder.md'}")


def _servable(data_root: Path | None) -> list[str]:
    """The benchmarks that can run without data, or those that have data sets to run with."""
    loaded, _ = load_all(benchmark_names(), load_benchmark)
    served = []
    for name, benchmark in loaded.items():
        domains = list(benchmark.evaluated())
        if all(domain.real if data_root else domain.synthetic for domain in domains):
            served.append(name)
    if not served:
        raise KdbenchError("no benchmark can be served: none has a data set that this version reads.")
    return served


def _usable_methods() -> list[str]:
    """Every method that loads; those that do not are named and left out."""
    loaded, broken = load_all(method_names(), load_method)
    for error in broken.values():
        _complain(f"left out: {error}")
    return list(loaded)


def _seeds(text: str) -> tuple[int, ...]:
    parts = split_list(text)
    if not all(part.isdecimal() for part in parts):
        raise KdbenchError(f"--seed '{text}': seeds are whole numbers from 0 on, separated by commas.")
    return tuple(int(part) for part in parts)


def _complain(text: str) -> None:
    Console(stderr=True).print(f"kdbench: {text}", highlight=False, markup=False, soft_wrap=True)


def _out(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
