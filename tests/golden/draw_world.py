"""Writes what tests/unit/data/test_world.py compares the world with. Only a new version of the world may change it:

python tests/golden/draw_world.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image

from kdbench.data.synthetic import DOMAINS, WORLDS, draw

FOLDER = Path(__file__).parent
SIZES = ((64, 128), (96, 96))
SPLITS = ("train", "val")
INDICES = (0, 1, 7, 40)


def label_hashes(domain: str) -> dict[str, str]:
    """A hash of every label map, or of the coarse groups where a domain has no labels."""
    found = {}
    for size in SIZES:
        for split in SPLITS:
            for index in INDICES:
                scene = draw(domain, split, index, size)
                drawn = scene.label if DOMAINS[domain].classes else scene.coarse
                found[f"{split}/{index}/{size[0]}x{size[1]}"] = hashlib.sha256(drawn.tobytes()).hexdigest()[:16]
    return found


def main() -> None:
    """For each version one file of hashes, and one picture a domain."""
    for world in set(WORLDS.values()):
        folder, domains = FOLDER / world, [name for name, spec in DOMAINS.items() if spec.world == world]
        folder.mkdir(exist_ok=True)
        hashes = {domain: label_hashes(domain) for domain in domains}
        (folder / "labels.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        for domain in domains:
            Image.fromarray(draw(domain, "val", 3, (64, 128)).image).save(folder / f"{domain}.png", optimize=True)


if __name__ == "__main__":
    main()
