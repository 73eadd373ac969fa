"""CSV and JSON files, written whole."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoints import write_whole


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same names as a CSV file, whole or not at all."""

    def write(target: Path) -> None:
        # A folder's name may be bytes that are no text; they are written as they are.
        with target.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write plain containers as a JSON file, whole or not at all."""
    text = as_json(value, indent=2)
    write_whole(path, lambda target: target.write_text(text))


def as_json(value: Any, indent: int | None = None) -> str:
    """Plain containers as JSON; numbers that are none, such as the score of a class that nothing has, are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
