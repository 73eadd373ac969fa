"""Web pages that need nothing beside themselves: pictures lie in the page, and no script or network is used."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..checkpoints import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines as they are typed or printed."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows with the same names, which stand above them."""

    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG file's bytes, and in words what it shows."""

    png: bytes
    text: str

    @property
    def url(self) -> str:
        """The picture as an address that holds it."""
        kind = "jpeg" if self.png.startswith(b"\xff\xd8") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Beside:
    """Pictures side by side."""

    pictures: Sequence[Picture]


__all__ = ["Beside", "Code", "Picture", "Section", "Table", "Text", "picture_of", "write_page"]

Part = Text | Code | Table | Picture | Beside


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading; ``folded`` shows the heading alone until it is clicked."""

    title: str
    parts: Sequence[Part]
    folded: bool = False


def picture_of(figure: "Figure", text: str, *, dpi: int = 110) -> Picture:
    """A matplotlib figure as a picture of a page.

    Args:
        figure: the figure.
        text: what it shows.
        dpi: pixels an inch.
    """
    # A page without figures needs no matplotlib.
    from ..tasks.pictures import png_of

    return Picture(png_of(figure, dpi), text)


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write a page as one HTML file, whole or not at all.

    Args:
        path: where to.
        title: its heading.
        sections: what it holds; whatever they say is text, never markup.

    Raises:
        FreqFormerError: it cannot be written.
    """
    # A folder's name may be bytes that are no text.
    text = _PAGE.render(title=title, sections=sections).encode("utf-8", errors="replace")
    write_whole(path, lambda aside: aside.write_bytes(text))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_ENVIRONMENT = Environment(
    loader=PackageLoader(__name__, "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["cell"] = _cell
_ENVIRONMENT.tests |= {
    name: (lambda part, kind=kind: isinstance(part, kind))
    for name, kind in {"text": Text, "code": Code, "table": Table, "picture": Picture, "beside": Beside}.items()
}
_PAGE = _ENVIRONMENT.get_template("page.html")
