"""Draws the golden pictures of tests/unit/synthetic/test_world.py. Only a new version of the world may change them:

python tests/golden/draw_world.py
"""

from __future__ import annotations

import hashlib
import json
from itertools import count
from pathlib import Path

from PIL import Image

from kdbench.synthetic import DOMAINS, WORLDS, draw
from kdbench.synthetic.canvas import Rng
from kdbench.synthetic.domains import _NOTHING, _lay_out, _style_box, _styles
from kdbench.synthetic.styles import Ranges

FOLDER = Path(__file__).parent
SIZES = ((64, 128), (96, 96))
SPLITS = ("train", "val")
INDICES = (0, 1, 7, 40)


def label_hashes(domain: str) -> dict[str, str]:
    """A hash of every label map and of the materials' colours; of the coarse groups where a domain has no labels."""
    found = {}
    for size in SIZES:
        for split in SPLITS:
            for index in INDICES:
                scene = draw(domain, split, index, size)
                drawn = scene.label if DOMAINS[domain].classes else scene.coarse
                content = drawn.tobytes() + scene.albedo.tobytes()
                found[f"{split}/{index}/{size[0]}x{size[1]}"] = hashlib.sha256(content).hexdigest()[:16]
    return found


def examples(domain: str) -> dict[str, Image.Image]:
    """A picture of every box of styles, the first that it has among the test images, and how near its pixels are."""
    spec, found = DOMAINS[domain], {}

    def drawn_box(index: int) -> Ranges:
        styles = _styles(spec, _lay_out(spec, _NOTHING, "val", index, 64, 128))
        return _style_box(styles, Rng(spec.world, "style", domain, "val", index))

    for k, (_, box) in enumerate(spec.boxes):
        boxes = map(drawn_box, count())
        scene = draw(domain, "val", next(index for index, drawn in enumerate(boxes) if drawn is box), (64, 128))
        found |= {f"{domain}-{k}": Image.fromarray(scene.image), f"{domain}-{k}-depth": Image.fromarray(scene.depth)}
    return found


def main() -> None:
    """For each version one file of hashes, and the pictures of every domain."""
    for data_source in set(WORLDS.values()):
        folder, domains = (
            FOLDER / data_source,
            [name for name, spec in DOMAINS.items() if spec.world == data_source],
        )
        folder.mkdir(exist_ok=True)
        hashes = {domain: label_hashes(domain) for domain in domains}
        (folder / "labels.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        for domain in domains:
            for name, picture in examples(domain).items():
                picture.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
