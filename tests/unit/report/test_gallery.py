"""Galleries against pictures painted by hand; predictions of another record, of other images, or damaged ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.errors import KdbenchError
from kdbench.pictures import (
    SAMPLES,
    SampleImage,
    Samples,
    predictions_file,
    read_predictions,
    read_samples,
    write_predictions,
    write_samples,
)
from kdbench.records import Record, read_record
from kdbench.report.frame import read
from kdbench.report.html.gallery import Gallery, make_gallery

PALETTE = ((200, 10, 20), (30, 200, 40), (50, 60, 200))
CLASSES = ("road", "building", "sky")
LICENCE = "ACDC, adverse conditions (ACDC licence: non-commercial research)"


def scene(domain: str, index: int, shape: tuple[int, int] = (4, 6), data_source: str = "synthetic-1") -> SampleImage:
    """An image of noise, with a label that has all classes and a corner to ignore."""
    label = np.resize(np.array([0, 1, 2], np.uint8), shape)
    label[0, 0] = 255
    image = np.random.default_rng(index).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return SampleImage(domain, index, data_source, LICENCE if data_source == "real" else "", image, label)


def two_scenes(data_source: str = "synthetic-1") -> Samples:
    """Images of two sizes, as some data sets have them."""
    return Samples(
        CLASSES, PALETTE, (scene("acdc-night", 3, data_source=data_source), scene("acdc-fog", 12, (6, 4), data_source))
    )


def all_of(classes: int, samples: Samples) -> list[np.ndarray]:
    """A model that sees one class everywhere."""
    return [np.full(scene.label.shape, classes, np.uint8) for scene in samples.scenes]


@pytest.fixture
def keep(tmp_path: Path, make_record, write) -> Callable[..., Path]:
    """Writes a record with predictions of one class, and the samples in its folder."""

    def kept(method: str, role: str, sees: int | None, *, samples: Samples | None = None, **cell) -> Path:
        samples = samples or two_scenes()
        record = make_record(
            {"acdc-night": 40.0, "acdc-fog": 30.0 + (sees or 0)}, {"cityscapes": 50.0},
            method=method, role=role, benchmark="c2a", **cell,
        )  # fmt: skip
        path = write(tmp_path, record)
        write_samples(path.parents[1], samples)
        if sees is not None:
            write_predictions(path, record, samples, iter(all_of(sees, samples)))
        return path

    return kept


ORDER = ("teacher", "plain", "cwd", "gkd", "dkd")


def shown(folder: Path, include_images: bool = False, reference: Path | None = None) -> Gallery:
    gallery = make_gallery(read(folder, reference).frame, ORDER, include_images)
    assert gallery is not None
    return gallery


def pixels(uri: str | None) -> np.ndarray:
    """The colours of a tile, as a browser would show them."""
    assert uri is not None
    start, content = uri.split(",")
    assert start == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = two_scenes("real")
    write_samples(tmp_path, samples)
    found = read_samples(tmp_path)
    assert found is not None
    assert (found.classes, found.palette, found.identity) == (CLASSES, PALETTE, samples.identity)
    assert found.licences == (LICENCE,)
    for one, other in zip(found.scenes, samples.scenes, strict=True):
        assert (one.name, one.data_source, one.licence) == (other.name, other.data_source, other.licence)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.label, other.label)
    assert read_samples(tmp_path / "nothing") is None


def test_predictions_belong_to_one_record_and_to_its_samples(keep) -> None:
    samples = two_scenes()
    path = keep("gkd", "distilled", 1)
    record = read_record(path)
    found = read_predictions(path, record, samples)
    assert found is not None
    assert [maps.tolist() for maps in found] == [maps.tolist() for maps in all_of(1, samples)]

    def with_key(record: Record, key: str) -> Record:
        resolved = record.spec.resolved.model_copy(update={"key": key})
        return record.model_copy(update={"spec": record.spec.model_copy(update={"resolved": resolved})})

    with pytest.raises(KdbenchError, match="of another record"):
        read_predictions(path, with_key(record, "another"), samples)
    assert read_predictions(path, record.model_copy(update={"status": "failed"}), samples) is None
    others = Samples(CLASSES, PALETTE, (scene("acdc-night", 4), samples.scenes[1]))
    with pytest.raises(KdbenchError, match="of other images"):
        read_predictions(path, record, others)
    renamed = Samples(CLASSES, PALETTE, (samples.scenes[0], scene("acdc-rain", 12, (6, 4))))
    with pytest.raises(KdbenchError, match="of other images"):
        read_predictions(path, record, renamed)


def test_a_gallery_has_image_label_and_what_each_model_sees(tmp_path: Path, keep) -> None:
    keep("gkd", "distilled", 1)
    keep("cwd", "distilled", 2)
    keep("dkd", "distilled", None)
    keep("plain", "undistilled", 0)
    keep("teacher", "teacher", 2)
    gallery = shown(tmp_path)
    # Classes stand for scores here: cwd is ahead of gkd on the board.
    assert gallery.columns == ("image", "label", "plain", "cwd", "gkd", "teacher mini:dinov2-l")
    assert gallery.seed == 0
    assert gallery.note == ""
    assert gallery.legend == (("road", "#c80a14"), ("building", "#1ec828"), ("sky", "#323cc8"))
    assert [row.domain for row in gallery.rows] == ["synthetic acdc-night-like", "synthetic acdc-fog-like"]
    for row, expected in zip(gallery.rows, two_scenes().scenes, strict=True):
        image, label, *predicted = map(pixels, row.tiles)
        assert np.array_equal(image, expected.image)
        for place, index in np.ndenumerate(expected.label):
            assert tuple(label[place]) == ((0, 0, 0) if index == 255 else PALETTE[index])
        assert [np.unique(each.reshape(-1, 3), axis=0).tolist() for each in predicted] == [
            [list(PALETTE[sees])] for sees in (0, 2, 1, 2)
        ]


def test_the_seed_is_the_lowest_of_those_that_most_rows_have(tmp_path: Path, keep) -> None:
    for seed, methods in ((0, ("plain",)), (1, ("plain", "gkd")), (2, ("plain", "gkd"))):
        for method in ("plain", "gkd"):
            role = "undistilled" if method == "plain" else "distilled"
            keep(method, role, 1 if method in methods else None, seed=seed)
    gallery = shown(tmp_path)
    assert gallery.seed == 1
    assert gallery.columns == ("image", "label", "plain", "gkd")


def test_real_images_are_shown_only_on_request_and_with_their_licence(tmp_path: Path, keep) -> None:
    samples = two_scenes("real")
    for method, role in (("plain", "undistilled"), ("gkd", "distilled")):
        keep(method, role, 1, samples=samples, data_source="real")
    hidden, asked = shown(tmp_path), shown(tmp_path, include_images=True)
    assert hidden.rows == ()
    assert "--include-images" in hidden.note
    assert [row.domain for row in asked.rows] == ["acdc-night", "acdc-fog"]
    assert np.array_equal(pixels(asked.rows[0].tiles[0]), samples.scenes[0].image)
    assert LICENCE in asked.note
    assert asked.note.count(LICENCE) == 1
    assert "--include-images" not in asked.note


def test_drawn_images_beside_real_ones_stay(tmp_path: Path, keep) -> None:
    mixed = Samples(CLASSES, PALETTE, (scene("acdc-night", 3, data_source="real"), scene("acdc-fog", 12)))
    keep("gkd", "distilled", 1, samples=mixed)
    assert [row.domain for row in shown(tmp_path).rows] == ["synthetic acdc-fog-like"]
    assert len(shown(tmp_path, include_images=True).rows) == 2


def test_no_pictures_no_gallery(tmp_path: Path, keep) -> None:
    path = keep("gkd", "distilled", None)
    assert make_gallery(read(tmp_path, None).frame, ORDER, include_images=True) is None
    # Predictions that a later record has outlived.
    other = read_record(keep("cwd", "distilled", 1, key="younger"))
    write_predictions(path, other, two_scenes(), iter(all_of(2, two_scenes())))
    assert shown(tmp_path).columns == ("image", "label", "cwd")
    predictions_file(next(tmp_path.rglob("cwd-s0.json"))).unlink()
    assert shown(tmp_path).columns == ()
    assert "of another record" in shown(tmp_path).note


def test_the_teacher_alone_is_no_gallery(tmp_path: Path, keep) -> None:
    keep("teacher", "teacher", 1)
    path = keep("gkd", "distilled", None)
    assert make_gallery(read(tmp_path, None).frame, ORDER, include_images=False) is None
    other = read_record(keep("cwd", "distilled", None, key="younger"))
    write_predictions(path, other, two_scenes(), iter(all_of(2, two_scenes())))
    assert shown(tmp_path).columns == ()


def test_two_folders_are_never_mixed_where_their_images_differ(tmp_path: Path, keep, write, make_record) -> None:
    keep("plain", "undistilled", 0)
    reference = tmp_path / "reference"
    record = make_record({"acdc-night": 40.0, "acdc-fog": 31.0}, {"cityscapes": 50.0}, method="gkd", benchmark="c2a")
    path = write(reference, record)
    others = Samples(CLASSES, PALETTE, (scene("acdc-night", 8),))

    for samples, expected in ((others, ("plain",)), (two_scenes(), ("plain", "gkd"))):
        write_samples(path.parents[1], samples)
        write_predictions(path, record, samples, iter(all_of(1, samples)))
        assert shown(tmp_path / "mini-1a2b3c4d", reference=reference).columns == ("image", "label", *expected)


def cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def no_archive(path: Path) -> None:
    path.write_text("{}")


def flipped(path: Path) -> None:
    """Compressed bytes that do not unfold, in every entry but the header."""
    content = bytearray(path.read_bytes())
    start = content.index(b"acdc-fog/12.npy") + 40
    content[start : start + 12] = b"\xff" * 12
    path.write_bytes(bytes(content))


def without_header(path: Path) -> None:
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files if name != "header"}
    np.savez_compressed(path, **arrays)


def of_another_shape(path: Path) -> None:
    with np.load(path) as held:
        arrays = {name: held[name] if name == "header" else held[name][..., :2] for name in held.files}
    np.savez_compressed(path, **arrays)


DAMAGES = (cut_off, no_archive, flipped, without_header, of_another_shape)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_predictions_are_named_and_harm_no_gallery(tmp_path: Path, keep, damage) -> None:
    keep("plain", "undistilled", 0)
    path = keep("gkd", "distilled", 1)
    damage(predictions_file(path))
    with pytest.raises(KdbenchError, match=r"gkd-s0\.predictions\.npz cannot be shown .*--pictures"):
        read_predictions(path, read_record(path), two_scenes())
    gallery = shown(tmp_path)
    assert gallery.columns == ("image", "label", "plain")
    assert len(gallery.rows) == 2
    assert f"1 of the files of pictures cannot be used; the first: {predictions_file(path)}" in gallery.note


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_samples_are_named_and_leave_no_gallery(tmp_path: Path, keep, damage) -> None:
    path = keep("gkd", "distilled", 1)
    keep("gkd", "distilled", 1, seed=1)
    damage(path.parents[1] / SAMPLES)
    gallery = shown(tmp_path)
    assert (gallery.rows, gallery.columns) == ((), ())
    assert gallery.note.startswith("1 of the files of pictures cannot be used")
    assert str(path.parents[1] / SAMPLES) in gallery.note
