"""The page of a sweep: its table and its picture."""

from pathlib import Path
from typing import Any

from ..pages import Picture, Section, Table, Text, write_page
from .folder import CONFIG, mapping

TABLE = "results.md"
PICTURE = "results.png"


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of ``freqformer adapt sweep``."""
    return (folder / TABLE).is_file() and "tasks" in mapping(folder / CONFIG)


def write_sweep(folder: Path, target: Path) -> Path:
    """Write a sweep's page of its ``results.md`` and ``results.png``.

    Raises:
        FreqFormerError: it cannot be written.
    """
    text = (folder / TABLE).read_text(encoding="utf-8")
    title, *blocks = text.strip().split("\n\n")
    parts: list[Any] = [_rows(block) if block.startswith("|") else Text(" ".join(block.split())) for block in blocks]
    picture = folder / PICTURE
    if picture.is_file():
        parts.append(Picture(picture.read_bytes(), "Each task's top-1 over its seeds, and the groups' means."))
    write_page(target, title.removeprefix("# "), [Section("Results", parts)])
    return target


def _rows(block: str) -> Table:
    """A Markdown table."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
    return Table([dict(zip(lines[0], line, strict=False)) for line in lines[2:]])
