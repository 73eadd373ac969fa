"""What a checkpoint has learned, as a picture and a page in a folder: KIND.png and KIND.html."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import write_whole
from ..data import printable
from ..errors import FreqFormerError
from ..pages import Picture, Section, write_page

if TYPE_CHECKING:
    pass

Progress = Callable[[Sequence[Any]], Iterable[Any]]


def targets(
    kind: str, output_dir: str | Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()
) -> tuple[Path, Path]:
    """The picture and the page that a kind writes, refused before anything is computed where they would be lost.

    Args:
        kind: what is drawn, such as ``"filters"``.
        output_dir: the folder for both.
        overwrite: replace those of an earlier call.
        inputs: files that are read, and must not be written over.

    Raises:
        FreqFormerError: one of them is there already, or is one of the inputs.
    """
    both = (Path(output_dir) / f"{kind}.png", Path(output_dir) / f"{kind}.html")
    read = {Path(path).resolve() for path in inputs}
    for path in both:
        name = printable(str(path))
        if path.exists() and not overwrite:
            raise FreqFormerError(f"{name} is there already: choose another --output-dir, or say --overwrite")
        if path.resolve() in read:
            raise FreqFormerError(f"{name} is one of the images and would be written over: choose another --output-dir")
    return both


def write_both(both: tuple[Path, Path], picture: Picture, title: str, sections: Sequence[Section]) -> tuple[Path, Path]:
    """Write the picture and the page, each whole or not at all; the folder is made where it is absent.

    Args:
        both: the paths that `targets` gave.
        picture: the sheet.
        title, sections: of the page.

    Returns:
        Both paths.

    Raises:
        FreqFormerError: they cannot be written.
    """
    png, page = both
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        name = printable(str(png.parent))
        raise FreqFormerError(f"cannot make {name}: {error.strerror}; choose another --output-dir") from error
    write_whole(png, lambda aside: aside.write_bytes(picture.png))
    write_page(page, title, sections)
    return both
