"""Pictures of a real data set carry its licence, and are left out of a page that does not ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdbench.data.datasets import ADAPTERS
from kdbench.engine.grid import expand, make_context, run_grid
from kdbench.engine.pictures import write_pictures
from kdbench.progress import Silent
from kdbench.report.boards import boards
from kdbench.report.frame import read
from kdbench.report.html.gallery import make_gallery
from kdbench.samples import read_samples
from kdbench.spec import RunSpec


def test_real_pictures_know_their_licence(trees: Any, make_spec: Callable[..., RunSpec]) -> None:
    for dataset in ("gtav", "mapillary"):
        trees.make(dataset)
    spec = make_spec(methods=("baseline",), benchmarks=("g2m",), data_root=trees.root, workers=0)
    context = make_context(spec, Silent())
    cells = expand(spec, context)
    list(run_grid(spec, context, cells))
    (sheet,) = write_pictures(context, cells, spec)
    samples = read_samples(sheet.parents[1])
    assert samples is not None
    assert len({scene.label.shape for scene in samples.scenes}) == 2
    assert {(scene.domain, scene.data_source) for scene in samples.scenes} == {("mapillary", "real")}
    (licence,) = samples.licences
    assert ADAPTERS["mapillary"].licence in licence
    (board,) = boards(read(spec.results, None).frame)
    hidden, asked = (make_gallery(board.frame, list(board.rows.index), include_images=asked) for asked in (False, True))
    assert hidden is not None
    assert asked is not None
    assert hidden.rows == ()
    assert licence in asked.note
    assert len(asked.rows) == len(samples.scenes)
