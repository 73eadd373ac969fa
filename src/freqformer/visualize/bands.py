"""How a model's score falls when its images lose low or high frequencies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..adapters.backbone import in_evaluation
from ..data.images import Source
from ..errors import FreqFormerError
from ..tasks.pictures import add_legend, plain
from .features import Progress, batches, is_dense, run
from .frequencies import HIGHEST, band_pass

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score = Callable[[float, float], Mapping[str, float]]
"""From a band's two ends to what a model reaches on images of it alone, by the measures' names."""
SAME = "images with the same class"
SURE = "probability of that class"
CUTOFFS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class BandScores:
    """What a model reaches on filtered images."""

    cutoffs: tuple[float, ...]
    whole: Mapping[str, float]
    """By measure, on the images as they are."""
    low: Sequence[Mapping[str, float]]
    """For each cutoff, on the frequencies up to it."""
    high: Sequence[Mapping[str, float]]
    """For each cutoff, on the mean and the frequencies from it on."""


def bands(
    scores: Score | Mapping[str, Score],
    cutoffs: Sequence[float] = CUTOFFS,
    *,
    constant: float | None = None,
    progress: Progress = iter,
) -> "Figure":
    """Draw models' scores as their images are low-passed and high-passed.

    Args:
        scores: of a model, or of several by name, such as `agreement` makes them.
        cutoffs: shares of the Nyquist frequency.
        constant: what the same answer to all images reaches, where that is known.
        progress: passes on a sequence and shows how far it is.

    Returns:
        A panel for each measure, with two curves for each model.

    Raises:
        FreqFormerError: cutoffs that are none.
    """
    named = {"": scores} if callable(scores) else scores
    return draw_bands({name: measure_bands(one, cutoffs, progress=progress) for name, one in named.items()}, constant)


def measure_bands(score: Score, cutoffs: Sequence[float] = CUTOFFS, *, progress: Progress = iter) -> BandScores:
    """A model's scores on the whole images, on their low frequencies and on their high ones.

    The images' mean always stays. A low-pass keeps the frequencies up to the cutoff, a high-pass those from it on.

    Args:
        score: of the model.
        cutoffs: see `bands`.
        progress: see `bands`.

    Raises:
        FreqFormerError: see `bands`.
    """
    chosen = tuple(sorted(set(cutoffs)))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] <= HIGHEST:
        raise FreqFormerError(f"cutoffs are shares of the Nyquist frequency, from 0 to 1.41, not {list(cutoffs)}")
    ends = [(0.0, HIGHEST), *((0.0, one) for one in chosen), *((one, HIGHEST) for one in chosen)]
    whole, *others = [dict(score(*band)) for band in progress(ends)]
    return BandScores(chosen, whole, others[: len(chosen)], others[len(chosen) :])


def agreement(model: nn.Module, images: Source | Sequence[Source], *, progress: Progress = iter) -> Score:
    """How much of a classifier's answers on images is left on a band of them, where no labels are known.

    Args:
        model: a classifier.
        images: PIL images or paths; the model prepares them itself, and what it takes is filtered. All are in memory
            at once (of 224x224 pixels 0.6 MB each): of very many, give some.
        progress: passes on a sequence and shows how far it is, as the whole images are classified.

    Returns:
        A score of two measures: the share of the images whose class stays the same, and the mean probability of the
        class that each has as a whole.

    Raises:
        FreqFormerError: no image, one that cannot be read, or a model that is no classifier.
    """
    if is_dense(model):
        raise FreqFormerError("bands of a detector or a segmenter needs annotated images: give --data-path")
    if getattr(model, "num_classes", 0) < 1:
        raise FreqFormerError("bands needs a model with classes: this one has no classifier")
    prepared, classes = [], []
    with torch.no_grad(), in_evaluation(model):
        for pixels in batches(model, images, progress):
            prepared.append(pixels)
            classes.append(run(model, pixels).argmax(-1))

    @torch.no_grad()
    def score(low: float, high: float) -> dict[str, float]:
        same = sure = 0.0
        with in_evaluation(model):
            for pixels, own in zip(prepared, classes, strict=True):
                shares = run(model, band_pass(pixels, low, high)).float().softmax(-1)
                same += float((shares.argmax(-1) == own).sum())
                sure += float(shares.gather(-1, own[:, None]).sum())
        count = sum(len(own) for own in classes)
        return {SAME: same / count, SURE: sure / count}

    return score


def draw_bands(measured: Mapping[str, BandScores], constant: float | None = None) -> "Figure":
    """Draw what `measure_bands` found, by the models' names; see `bands`."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    measures = list(next(iter(measured.values())).whole)
    figure = Figure(figsize=(4.8 * len(measures) + 0.4, 3.9), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for number, one in enumerate(measured.values()):
            colour = f"C{number}"
            low, high = ([scores[measure] for scores in side] for side in (one.low, one.high))
            axes.plot(one.cutoffs, low, "o-", color=colour, markersize=4)
            axes.plot(one.cutoffs, high, "s--", color=colour, markersize=4)
            axes.axhline(one.whole[measure], color=colour, linewidth=0.9, alpha=0.7)
        handles = [
            Line2D([], [], color="0.3", marker="o", markersize=4, label="low-pass: frequencies up to f"),
            Line2D([], [], color="0.3", marker="s", markersize=4, linestyle="--", label="high-pass: from f on"),
            Line2D([], [], color="0.3", linewidth=0.9, label="unfiltered"),
        ]
        if constant is not None:
            style: dict[str, Any] = {"color": "0.3", "linestyle": ":", "linewidth": 1.2}
            handles.append(axes.axhline(constant, **style, label="always the largest class"))
        if len(measured) > 1:
            handles += [Line2D([], [], color=f"C{number}", label=plain(name)) for number, name in enumerate(measured)]
        add_legend(axes, handles, 8)
        axes.set_xlabel("cutoff f (share of the Nyquist frequency)")
        axes.set_ylabel(measure)
        axes.set_xlim(0, None)
        # A line at the largest value is not to lie on the frame.
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    return figure
