"""CSV files, written whole."""

import csv
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
