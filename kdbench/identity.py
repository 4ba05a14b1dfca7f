"""Digests of plain values and of source code, and random seeds derived from their purpose."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any


def digest(value: Any, length: int = 16) -> str:
    """Return the hex digest of a JSON-like value, the same on every machine and in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


def code_digest(path: Path) -> str:
    """Return the digest of a Python file without its comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return digest(ast.dump(tree))


def seed_from(*purpose: Any) -> int:
    """Return a 63-bit seed for a purpose, e.g. (run seed, phase, "order", epoch)."""
    return int(digest(purpose, 16), 16) >> 1
