"""What a checkpoint has learned, as a picture and a page in a folder: KIND.png and KIND.html."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints import write_whole
from ..data import printable
from ..errors import FreqFormerError
from ..pages import Code, Picture, Section, Table, Text, picture_of, write_page
from ..visualize import LearnedFilter, filters, learned_filters, load_network, mixtures
from ..visualize.features import Progress
from ..visualize.learned import KINDS
from ..visualize.sheet import choose_layers, filter_band
from ..visualize.tiles import draw_bands
from .predict import find_images


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


def repeat_section(kind: str, words: Sequence[str]) -> Section:
    """The command of a page, as it was typed.

    Args:
        kind: what was drawn.
        words: what stands after it.
    """
    return Section("The command that repeats it", [Code(shlex.join(["freqformer", "visualize", kind, *words]))])


def show_filters(
    path: str | Path,
    *,
    arch: str | None = None,
    layers: Sequence[str] | None = None,
    channels: int | Sequence[int] = 16,
    order: str = "energy",
    seed: int = 0,
    images: Sequence[str | Path] | None = None,
    output_dir: str | Path = "pictures",
    overwrite: bool = False,
    progress: Progress = iter,
) -> tuple[Path, Path]:
    """Write the learned filters of a checkpoint as ``filters.png`` and ``filters.html``.

    The page has a section for each layer, with its filters larger and figures of all of them, and, of a model with
    dynamic filters, what given images choose.

    Args:
        path, arch: see `visualize.load_network`.
        layers, channels, order, seed: see `visualize.filters`.
        images: files, and folders of images, to choose mixtures of dynamic filters.
        output_dir: the folder for both files.
        overwrite: replace those of an earlier call.
        progress: passes on layers.

    Returns:
        Paths of the picture and the page.

    Raises:
        FreqFormerError: an unusable checkpoint, a model without filters, a wrong setting, or a file that would be lost.
    """
    chosen_images = list(find_images(images)) if images else []
    both = targets("filters", output_dir, overwrite=overwrite, inputs=chosen_images)
    model, _ = load_network(path, arch)
    learned = learned_filters(model)
    chosen = choose_layers(learned, layers)
    sheet = filters(model, layers=layers, channels=channels, order=order, seed=seed)
    overview = picture_of(sheet, "Every layer; larger below.")
    numbers = {name: number for number, name in enumerate(learned)}
    sections = [
        Section(
            "All filters in figures", [Table([_figures(numbers[one.name], one) for one in chosen]), Text(_FIGURES)]
        ),
        Section("The sheet", [overview], folded=True),
    ]
    if chosen_images:
        words = "Each filter's share in the mixtures that the images choose, and mixed filters."
        drawn = picture_of(mixtures(model, chosen_images, progress=progress), words)
        names = [{"image": number, "file": str(image)} for number, image in enumerate(chosen_images)]
        sections.append(Section("What images choose", [drawn, Table(names)]))
    for one in progress(chosen):
        band = filter_band(one, numbers[one.name], channels=channels, order=order, seed=seed)
        picture = picture_of(
            draw_bands([replace(band, title="")], "", tile=1.05, columns=8), f"{KINDS[one.kind]} of {one.name}"
        )
        sections.append(Section(f"{numbers[one.name]}: {one.name}", [picture]))
    typed = [str(path)]
    for flag, values, usual in (
        ("--layers", layers or [], []),
        ("--channels", [channels] if isinstance(channels, int) else [], [16]),
        ("--channel-numbers", [] if isinstance(channels, int) else channels, []),
        ("--order", [order], ["energy"]),
        ("--seed", [seed], [0]),
        ("--images", images or [], []),
        ("--arch", [] if arch is None else [arch], []),
    ):
        typed += [flag, *map(str, values)] if values and list(values) != usual else []
    sections.append(repeat_section("filters", typed))
    return write_both(both, overview, f"Learned filters of {printable(str(path))}", sections)


_FIGURES = (
    "Figures are means over all channels of a layer. Energy: the squared gain, as a mean over frequencies. Low share: "
    "of the energy at frequencies below half of Nyquist; of a filter that treats all frequencies alike it is about a "
    "fifth. DC gain: what becomes of the mean. Footprint: over how many tokens the impulse response spreads, which is "
    "1 where it is one impulse and all tokens where it is even."
)


def _figures(number: int, one: LearnedFilter) -> dict[str, Any]:
    """A layer's row of the table."""
    figures = one.figures()
    return {
        "layer": number,
        "name": one.name,
        "kind": one.kind,
        "grid": f"{one.grid[0]}×{one.grid[1]}",
        "channels": one.channels,
        "energy": figures["energy"],
        "low share": figures["low_share"],
        "DC gain": figures["dc_gain"],
        "footprint (tokens)": figures["footprint"],
    }
