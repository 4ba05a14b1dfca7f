"""Train two students, compare them, and use one; half a minute on a laptop.

python docs/api_example.py [FOLDER]
"""

import sys
from pathlib import Path

from PIL import Image

import kdbench
from kdbench.synthetic import draw

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "kdbench-results")

# The same request as: kdbench run --method logit_kd,cwd --pair dinov2-s:deit-s --benchmark g2c --protocol smoke ...
frame = kdbench.run(
    method=["logit_kd", "cwd"],
    pair="dinov2-s:deit-s",
    benchmark="g2c",
    protocol="smoke",
    set={"logit_kd.temperature": 2},
    results=folder / "results",
    store=folder / "store",
)

# A row for each cell, snapshot and domain. The mean over the targets at the end of training:
last = frame[frame["last"] & (frame.domain_role == "target")]
print(last.groupby("label").miou.mean().round(1))

# The same frame later, from the records on disk; every model may be used again.
assert len(kdbench.load_results(folder / "results")) == len(frame)
student = kdbench.load_student(last[last.label == "cwd"].path.iloc[0], store=folder / "store")
scene = draw("cityscapes", "val", 0, student.protocol.image_size)
label_map = student.predict(Image.fromarray(scene.image))
print("classes found:", ", ".join(student.classes[index] for index in label_map.unique()))
