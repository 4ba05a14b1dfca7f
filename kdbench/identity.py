"""Names for content: a stable digest of any plain value, and random seeds that are a function of what they are for."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-like value; equal values give equal digests on every machine and in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


def seed_from(*purpose: Any) -> int:
    """A 63-bit seed that is a function of its purpose, e.g. (run seed, phase, "order", epoch)."""
    return int(digest(purpose, 16), 16) >> 1
