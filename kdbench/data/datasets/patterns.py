"""A user's own images as a data set: files by the patterns of a benchmark file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from kdbench.benchmark import WILDCARD, FilePatterns
from kdbench.data.datasets.adapter import Adapter, FileLayout
from kdbench.data.datasets.labels import indices, table

_MEANING = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}


def adapter_of(name: str, patterns: FilePatterns, splits: Iterable[str]) -> Adapter:
    """Return the adapter of files with these patterns, whose folder is what all of them begin with.

    splits: the names that {split} stands for.
    """
    given = [patterns.images, *filter(None, [patterns.labels])]
    folder = os.path.commonpath([_fixed(pattern) for pattern in given])
    image, *label = (_expression(pattern, folder, splits) for pattern in given)
    layout = FileLayout(
        image=image,
        label=label[0] if label else None,
        decode=indices,
        values={*patterns.values, *patterns.ignored},
        tables={"own": table(patterns.values)},
        part="{split}" if "{split}" in patterns.images else "all",
    )
    return Adapter(
        name=name,
        title=name,
        folders=(folder or ".",),
        layouts=(layout,),
        home=f"your own files, {' and '.join(given)}",
        licence="your own",
        restore="add the missing files, or mend the patterns",
        classes=patterns.space,
    )


def _fixed(pattern: str) -> str:
    """Return the folders before the first wildcard."""
    return WILDCARD.split(pattern)[0].rpartition("/")[0]


def _expression(pattern: str, folder: str, splits: Iterable[str]) -> str:
    """Return a layout's regular expression of a pattern below the folder; wildcards become groups in their order."""
    below = str(PurePosixPath(pattern).relative_to(folder)) if folder else pattern
    parts, made = WILDCARD.split(below), ""
    for place, part in enumerate(parts):
        if place % 2 == 0:
            made += re.escape(part)
        else:
            split = "|".join(map(re.escape, splits))
            made += f"(?P<split>{split})" if part == "{split}" else f"(?P<wildcard{place:02}>{_MEANING[part]})"
    return made
