"""What a checkpoint does with images, as pictures and pages: spectrum, response, attention and bands."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import open_images, printable
from ..errors import FreqFormerError
from ..pages import Section, Table, Text, picture_of
from ..tasks import require
from ..visualize.attention import block_labels, draw_attention, measure_attention
from ..visualize.bands import CUTOFFS, BandScores, Score, agreement, draw_bands, measure_bands
from ..visualize.features import Progress
from ..visualize.loading import load_network
from ..visualize.response import SHARES, draw_response, measure_response
from ..visualize.spectrum import draw_spectrum, measure_spectrum
from .predict import find_images
from .visualize import repeat_section, targets, write_both

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOP1 = "top-1 accuracy"
_OF_TASK = {
    **dict.fromkeys(("val_json", "images_dir"), "detection"),
    **dict.fromkeys(("val_images", "val_masks", "class_file", "ignore_index"), "segmentation"),
}
"""What evaluations of one task alone are told."""


def show_spectrum(
    checkpoint: str,
    images: Sequence[str],
    *,
    against: Sequence[str] = (),
    arch: str | None = None,
    output_dir: str = "pictures",
    overwrite: bool = False,
    progress: Progress = iter,
) -> tuple[Path, Path]:
    """Write ``spectrum.png`` and ``spectrum.html``: the frequencies of the features through depth.

    Args:
        checkpoint: a run's folder or a file.
        images: files, or folders of images.
        against: further checkpoints, drawn beside it.
        arch: the models' name, of bare weights.
        output_dir: the folder for both files.
        overwrite: replace those of an earlier call.
        progress: passes on a sequence and shows how far it is.

    Returns:
        Both paths.

    Raises:
        FreqFormerError: an unusable checkpoint or image, or files that would be lost.
    """
    found = list(find_images(images))
    both = targets("spectrum", output_dir, overwrite=overwrite, inputs=found)
    models = {name: load_network(path, arch)[0] for name, path in _named([checkpoint, *against]).items()}
    measured = {name: measure_spectrum(model, found, progress=progress) for name, model in models.items()}
    rows = [
        {
            "model": name,
            "block": one.name,
            "kind": one.kind,
            "depth": one.depth,
            "grid": f"{one.grid[0]}x{one.grid[1]}",
            "above half the Nyquist": one.high,
        }
        for name, spectra in measured.items()
        for one in spectra
    ]
    curves = [
        {"model": name, "block": one.name, "frequency": float(frequency), "relative log10 amplitude": float(value)}
        for name, spectra in measured.items()
        for one in spectra
        for frequency, value in zip(one.frequency, one.relative, strict=True)
    ]
    how = (
        f"The mean over {_count(found)} of the log10 amplitude of the features' 2-D Fourier transform after each "
        "block, averaged over channels and over rings of equal distance from the centre, less its value at frequency 0 "
        "(Park and Kim, How Do Vision Transformers Work?, ICLR 2022). Frequencies are shares of the Nyquist frequency "
        "of the block's own grid, which in a pyramid is coarser from stage to stage; the spectrum's corners, above 1, "
        "are left out. The last panel is the mean of each curve above half the Nyquist frequency. SpectFormer's claim "
        "is that early spectral layers carry the high frequencies and later attention the low."
    )
    words = [*images, *(["--against", *against] if against else [])]
    tables = [Section("Numbers", [Table(rows)]), Section("Curves", [Table(curves)], folded=True)]
    return _write(both, "spectrum", draw_spectrum(_untitled(measured)), how, tables, _repeat(checkpoint, words, arch))


def show_response(
    checkpoint: str,
    images: Sequence[str] = (),
    *,
    arch: str | None = None,
    output_dir: str = "pictures",
    overwrite: bool = False,
    progress: Progress = iter,
) -> tuple[Path, Path]:
    """Write ``response.png`` and ``response.html``: how much of an image each stage sees.

    Args:
        checkpoint, arch, output_dir, overwrite, progress: see `show_spectrum`.
        images: files, or folders of images; without any, noise.

    Returns:
        Both paths.

    Raises:
        FreqFormerError: see `show_spectrum`.
    """
    found = list(find_images(images))
    both = targets("response", output_dir, overwrite=overwrite, inputs=found)
    measured = measure_response(load_network(checkpoint, arch)[0], found or None, progress=progress)
    rows = [
        {
            "block": one.name,
            "kind": one.kind,
            "grid": f"{one.grid[0]}x{one.grid[1]}",
            **{f"side that holds {share:.0%}": one.sides[share] for share in SHARES},
        }
        for one in measured
    ]
    how = (
        "The gradient of one token's features, the cross, with respect to the image, the features' channels added with "
        "random signs: its absolute value, added over the colours and averaged over "
        f"{_count(found) if found else 'images of seeded noise'} (Luo et al., Understanding the Effective Receptive "
        "Field in Deep Convolutional Neural Networks, NeurIPS 2016). The squares around the token hold "
        f"{' and '.join(f'{share:.0%}' for share in SHARES)} of it; their sides are shares of the image's side."
    )
    figure = draw_response(measured)
    tables = [Section("Numbers", [Table(rows)])]
    return _write(both, "response", figure, how, tables, _repeat(checkpoint, list(images), arch))


def show_attention(
    checkpoint: str,
    images: Sequence[str],
    *,
    query: tuple[float, float] = (0.5, 0.5),
    arch: str | None = None,
    output_dir: str = "pictures",
    overwrite: bool = False,
    progress: Progress = iter,
) -> tuple[Path, Path]:
    """Write ``attention.png`` and ``attention.html``: where attention looks on images.

    Args:
        checkpoint, images, arch, output_dir, overwrite, progress: see `show_spectrum`; the picture is of the first
            image, and the page has all of them.
        query: the place whose token's attention is drawn, as shares of the height and the width.

    Returns:
        Both paths.

    Raises:
        FreqFormerError: see `show_spectrum`; a model without attention.
    """
    found = list(find_images(images))
    both = targets("attention", output_dir, overwrite=overwrite, inputs=found)
    model = load_network(checkpoint, arch)[0]
    pictures: list[Any] = []
    sections: list[Section] = []
    for path in progress(found):
        picture, maps = measure_attention(model, path, query=query)
        name = printable(str(path))
        drawn = picture_of(draw_attention(picture, maps, query=query), f"attention on {name}")
        rows = [
            {
                "block": label,
                "module": one.name,
                "heads": one.heads,
                "grid": f"{one.grid[0]}x{one.grid[1]}",
                "most looked at": float(one.overall.max() * one.overall.size),
                "entropy": one.spread,
            }
            for label, one in zip(block_labels([one.name for one in maps]), maps, strict=True)
        ]
        pictures.append(drawn)
        sections.append(Section(name, [*([drawn] if len(pictures) > 1 else []), Table(rows)]))
    if not pictures:
        raise FreqFormerError("there is no image to look at: name at least one")
    how = (
        "The attention of each block, the softmax of the products of queries and keys, averaged over the heads. Upper "
        "row: how much each patch is looked at, by the class token where there is one and otherwise by all tokens in "
        "the mean. Lower row: where the token at the cross looks. The figures are a map's smallest and largest value "
        "in multiples of equal attention to every patch; its colours go from the one to the other. The entropy is a "
        "share of that of equal attention, averaged over queries and heads."
    )
    place = [] if query == (0.5, 0.5) else ["--query", *map(str, query)]
    words = [*images, *place]
    return write_both(
        both,
        pictures[0],
        _title("attention", checkpoint),
        [
            _first("attention", pictures[0], how),
            *sections,
            repeat_section("attention", _repeat(checkpoint, words, arch)),
        ],
    )


def show_bands(
    checkpoint: str,
    images: Sequence[str] = (),
    *,
    data_set: str | None = None,
    data_path: str | None = None,
    split: str = "val",
    limit: int = 500,
    val_json: str | None = None,
    images_dir: str | None = None,
    val_images: str | None = None,
    val_masks: str | None = None,
    class_file: str | None = None,
    ignore_index: int | None = 255,
    num_workers: int = 2,
    cutoffs: Sequence[float] | None = None,
    against: Sequence[str] = (),
    arch: str | None = None,
    output_dir: str = "pictures",
    overwrite: bool = False,
    progress: Progress = iter,
) -> tuple[Path, Path]:
    """Write ``bands.png`` and ``bands.html``: the score as images lose their low or their high frequencies.

    Args:
        checkpoint, against, arch, output_dir, overwrite, progress: see `show_spectrum`.
        images: files, or folders of images, for a classifier whose answers are compared with those on whole images.
        data_set: of labelled images, in their place; of a detector or a segmenter there is only one kind.
        data_path: the folder it lies in.
        split: of it.
        limit: take this many images at most, evenly chosen of the given ones, in a fixed shuffled order of a data set.
        val_json, images_dir: annotations of a detector's images in COCO's format, and the folder that their file names
            begin at, where they lie in no usual place.
        val_images, val_masks, class_file: folders of a segmenter's images and masks, and the file of its classes.
        ignore_index: the value of mask pixels without a class.
        num_workers: processes that load them.
        cutoffs: shares of the Nyquist frequency; by default ten from 0.05 to 1.

    Returns:
        Both paths.

    Raises:
        FreqFormerError: see `show_spectrum`; a data set that cannot be opened or has other classes.
    """
    places = {
        "data_set": data_set,
        "data_path": data_path,
        "val_json": val_json,
        "images_dir": images_dir,
        "val_images": val_images,
        "val_masks": val_masks,
        "class_file": class_file,
    }
    data: dict[str, Any] = {name: value for name, value in places.items() if value is not None}
    if ignore_index != 255:
        data["ignore_index"] = ignore_index
    labelled = bool(data)
    if labelled and images:
        raise FreqFormerError("bands takes images, or a data set with --data-set and --data-path: not both")
    require(limit >= 1, "--limit", "at least 1", limit)
    found = list(find_images(images))
    both = targets("bands", output_dir, overwrite=overwrite, inputs=found)
    if not labelled and not found:
        raise FreqFormerError("bands needs images, or a data set with --data-set and --data-path")
    # All are in memory at once.
    taken = found if len(found) <= limit else [found[number * len(found) // limit] for number in range(limit)]
    chosen = CUTOFFS if cutoffs is None else tuple(cutoffs)
    words = [*images]
    for name, value in data.items():
        words += [f"--{name.replace('_', '-')}", "null" if value is None else str(value)]
    data |= {"split": split, "limit": limit, "num_workers": num_workers}
    scores: dict[str, Score] = {}
    for name, path in _named([checkpoint, *against]).items():
        model, task = load_network(path, arch)
        scores[name] = _evaluation(task, path, arch, data) if labelled else agreement(model, taken, progress=progress)
    measured = {name: measure_bands(score, chosen, progress=progress) for name, score in scores.items()}
    measures = {measure for one in measured.values() for measure in one.whole}
    if any(set(one.whole) != measures for one in measured.values()):
        raise FreqFormerError("models of several tasks have no score in common: draw their bands apart")
    constant = _largest_class(data) if measures == {_TOP1} else None
    figure = draw_bands(_untitled(measured), constant)
    some = _count(found) if len(taken) == len(found) else f"{limit} of {_count(found)}, evenly chosen"
    what = f"at most {limit} images of the split {split}" if labelled else some
    how = (
        f"Each score on {what}, whose frequencies above (low-pass) or below (high-pass) a cutoff were removed by a "
        "Fourier transform; the mean always stays. A cutoff is a share of the Nyquist frequency at the size at which "
        "images are filtered: a classifier's at its input size, a segmenter's once their shorter side is resized, "
        "a detector's as they are in their files, before it resizes them."
    )
    how += "" if labelled else " The answers are compared with those on the whole images."
    words += ["--split", split] if labelled else []
    words += ["--limit", str(limit)] if labelled or len(taken) < len(found) else []
    words += ["--cutoffs", *map(str, chosen)] if chosen != CUTOFFS else []
    words += ["--against", *against] if against else []
    tables = [Section("Numbers", [Table(_band_rows(measured))])]
    return _write(both, "bands", figure, how, tables, _repeat(checkpoint, words, arch))


def _evaluation(task: str, path: str, arch: str | None, data: Mapping[str, Any]) -> Score:
    """A score of the package's own evaluation of a checkpoint, on a band of the images."""
    from ..engine import EvaluationConfig, evaluate
    from ..engine.evaluate_dense import (
        DetectionEvaluation,
        SegmentationEvaluation,
        evaluate_detector,
        evaluate_segmenter,
    )

    kinds: dict[str, tuple[type, Callable[[Any], dict[str, Any]], dict[str, str]]] = {
        "classification": (EvaluationConfig, evaluate, {"top1": _TOP1}),
        "detection": (DetectionEvaluation, evaluate_detector, {"AP": "AP", "AP50": "AP50"}),
        "segmentation": (SegmentationEvaluation, evaluate_segmenter, {"mIoU": "mIoU"}),
    }
    config_type, run, names = kinds[task]
    if task != "classification" and "data_set" in data:
        raise FreqFormerError(f"--data-set is for classifiers: a model of {task} needs --data-path alone")
    given = {**data, **({"arch": arch} if arch is not None else {})}
    for key in given:
        if _OF_TASK.get(key, task) != task:
            raise FreqFormerError(f"--{key.replace('_', '-')} is for models of {_OF_TASK[key]}: this one is of {task}")
    if "images_dir" in given:
        # Its name elsewhere, --images, would be that of the images here.
        given["images"] = given.pop("images_dir")

    def score(low: float, high: float) -> Mapping[str, float]:
        # One bar tells how far all the evaluations are.
        with redirect_stdout(io.StringIO()):
            figures = run(config_type(model_path=path, band=(low, high), **given))
        return {name: figures[key] for key, name in names.items()}

    return score


def _largest_class(data: Mapping[str, Any]) -> float:
    """The largest class's share of a classifier's images."""
    images = open_images(data.get("data_set", "IMNET"), data.get("data_path"), data["split"], limit=data["limit"])
    return max(Counter(images.targets).values()) / len(images)


def _band_rows(measured: Mapping[str, BandScores]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, one in measured.items():
        rows.append({"model": name, "filter": "none", "cutoff": None, **one.whole})
        for kind, scores in (("low-pass", one.low), ("high-pass", one.high)):
            rows += [
                {"model": name, "filter": kind, "cutoff": cutoff, **found}
                for cutoff, found in zip(one.cutoffs, scores, strict=True)
            ]
    return rows


def _named(paths: Sequence[str]) -> dict[str, str]:
    """Short names for checkpoints: their folder's or file's, with what comes above where two are alike."""
    parts = {path: Path(path).resolve().parts for path in paths}
    # One may be spelt in several ways.
    if len(set(parts.values())) < len(paths):
        raise FreqFormerError("a checkpoint is named twice: name each once")
    length = 1
    while len({tuples[-length:] for tuples in parts.values()}) < len(parts):
        length += 1
    return {printable("/".join(one[-length:])): path for path, one in parts.items()}


def _untitled(measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """One model alone needs no name in the picture."""
    return measured if len(measured) > 1 else {"": next(iter(measured.values()))}


def _count(found: Sequence[Path]) -> str:
    return f"{len(found)} image{'s' if len(found) != 1 else ''}"


def _repeat(checkpoint: str, words: Sequence[str], arch: str | None) -> list[str]:
    return [checkpoint, *words, *(["--arch", arch] if arch else [])]


def _title(kind: str, checkpoint: str) -> str:
    return f"{kind.capitalize()} of {printable(checkpoint)}"


def _first(kind: str, picture: Any, how: str) -> Section:
    return Section(kind.capitalize(), [picture, Text(how)])


def _write(
    both: tuple[Path, Path], kind: str, figure: "Figure", how: str, tables: Sequence[Section], words: Sequence[str]
) -> tuple[Path, Path]:
    picture = picture_of(figure, kind)
    return write_both(
        both, picture, _title(kind, words[0]), [_first(kind, picture, how), *tables, repeat_section(kind, words)]
    )
