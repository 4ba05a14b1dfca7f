"""Names for content: a stable digest of any plain value, and random seeds that are a function of what they are for."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any


def digest(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-like value; equal values give equal digests on every machine and in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


def code_digest(path: Path) -> str:
    """Digest of a Python file without its comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return digest(ast.dump(tree))


def seed_from(*purpose: Any) -> int:
    """A 63-bit seed that is a function of its purpose, e.g. (run seed, phase, "order", epoch)."""
    return int(digest(purpose, 16), 16) >> 1
