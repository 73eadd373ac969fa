"""What the page shows of an image: what the model gets, what is left of its frequencies, and what the model says."""

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..data import overlay
from ..errors import FreqFormerError
from ..pages import picture_of
from ..tasks import model_transform
from ..tasks.dense_pictures import Colour, class_colours, draw_instances
from ..tools.dense import detect, segment
from ..tools.predict import most_probable
from ..visualize import band_pass, filters
from ..visualize.attention import attention
from ..visualize.features import denormalised
from ..visualize.frequencies import HIGHEST
from .subject import Subject

TOP_K = 5
ALL = 1.42
"""The upper end of the sliders: a little above the highest frequency, so that it is everything."""
# Spectra are drawn with at most so many bins a side, and reach so many powers of ten below the strongest.
_BINS = 512
_DECADES = 6
# Smaller images are enlarged for people, pixel by pixel.
_VISIBLE = 256


@dataclass(frozen=True)
class Said:
    """What a model says of one image."""

    shares: dict[str, float]
    """Of a classifier the probability of the most probable classes; of a segmenter the classes' shares of the pixels;
    of a detector nothing."""
    picture: Image.Image | None = None
    """Of a detector or a segmenter the image with what was found."""
    summary: str = ""
    """Of a detector how many of each class."""


@dataclass(frozen=True)
class Looked:
    """An image under a band of frequencies."""

    given: Image.Image
    """What the model gets; of a classifier that is cut and resized."""
    left: Image.Image
    """What is left of it."""
    spectrum: Image.Image
    left_spectrum: Image.Image
    of_given: Said
    of_left: Said


@torch.inference_mode()
def answer(subject: Subject, image: Image.Image, score_thr: float = 0.3) -> Said:
    """What a model says of an image.

    Args:
        subject: the model.
        image: RGB.
        score_thr: of a detector, the least score of what is drawn.
    """
    if subject.task == "classification":
        return _classify(subject, model_transform(subject.model)(image))
    return _detect(subject, image, score_thr) if subject.task == "detection" else _segment(subject, image)


@torch.inference_mode()
def look(
    subject: Subject,
    image: Image.Image,
    low: float = 0.0,
    high: float = ALL,
    score_thr: float = 0.3,
    of_given: Callable[[float], Said] | None = None,
) -> Looked:
    """Show an image to a model, whole and without some of its frequencies.

    Args:
        subject: the model.
        image: RGB.
        low: the least frequency to keep, as a share of the Nyquist frequency of what the model gets.
        high: the greatest.
        score_thr: of a detector, the least score of what is drawn.
        of_given: from ``score_thr`` to the `answer` for the whole image, of one who remembers it; by default the model
            is asked.

    Raises:
        FreqFormerError: the band's ends or the score are no numbers in their ranges.
    """
    low, high = _number(low, "keep from", ALL), _number(high, "keep up to", ALL)
    if low > high:
        raise FreqFormerError(f"“keep from” ({low:g}) is above “keep up to” ({high:g}): nothing would be kept")
    score_thr = _number(score_thr, "the least score", 1.0)
    said = of_given(score_thr) if of_given else answer(subject, image, score_thr)
    everything = low == 0 and high >= HIGHEST
    if subject.task == "classification":
        pixels = model_transform(subject.model)(image)
        said_of_left = said if everything else _classify(subject, band_pass(pixels, low, high))
        given = denormalised(pixels, subject.model.pretrained_cfg)
    else:
        given = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        said_of_left = said if everything else answer(subject, _picture(band_pass(given, low, high)), score_thr)
    left = band_pass(given, low, high)
    spectra = [_log_magnitude(pixels) for pixels in (given, left)]
    strongest = float(spectra[0].max())
    drawn = [_draw_spectrum(spectrum, strongest, low, high) for spectrum in spectra]
    return Looked(_visible(given), _visible(left), drawn[0], drawn[1], said, said_of_left)


def attention_of(subject: Subject, image: Image.Image) -> Image.Image:
    """The attention of a model's blocks on an image, drawn; raises FreqFormerError where the model has none."""
    _require_layers(subject, "attention")
    try:
        return _render(attention(subject.model, image))
    except FreqFormerError as error:
        # What follows are commands, which a visitor does not have.
        raise FreqFormerError(str(error).partition(";")[0]) from error


def filters_of(subject: Subject) -> Image.Image:
    """A model's learned filters, drawn; raises FreqFormerError where it has none."""
    _require_layers(subject, "filters")
    return _render(filters(subject.model))


def colours_of(subject: Subject) -> dict[str, Colour]:
    """The colours in which a detector's or a segmenter's classes are drawn."""
    if subject.task == "segmentation":
        palette = [(int(red), int(green), int(blue)) for red, green, blue in subject.about["palette"]]
        return dict(zip(subject.labels, palette, strict=True))
    return class_colours(subject.labels)


def _require_layers(subject: Subject, what: str) -> None:
    if subject.is_onnx:
        raise FreqFormerError(f"an ONNX file does not show its {what}: open the checkpoint that it was exported from")


def _number(value: object, name: str, most: float) -> float:
    # Whoever calls the page's functions without the page may send anything.
    if not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise FreqFormerError(f"{name} must be a number from 0 to {most:g}")
    return float(value)


def _classify(subject: Subject, pixels: Tensor) -> Said:
    device = next((parameter.device for parameter in subject.model.parameters()), torch.device("cpu"))
    return Said(_named(subject, most_probable(subject.model, pixels[None].to(device), TOP_K)[0]))


def _named(subject: Subject, found: tuple[list[float], list[int]]) -> dict[str, float]:
    """Probabilities by name; two classes of ImageNet share theirs with others, and get their number behind it."""
    counts = Counter(subject.labels)
    names = [f"{subject.labels[i]} ({i})" if counts[subject.labels[i]] > 1 else subject.labels[i] for i in found[1]]
    return dict(zip(names, found[0], strict=True))


def _detect(subject: Subject, image: Image.Image, score_thr: float) -> Said:
    (found,) = detect(subject.model, image, score_thr=score_thr)
    drawn = draw_instances(
        image, found.boxes, found.labels, found.scores, found.masks, colours=class_colours(subject.labels)
    )
    counts = Counter(found.labels).most_common()
    summary = ", ".join(f"{count} × {name}" for name, count in counts) or "nothing of this score or above"
    return Said({}, drawn, summary)


def _segment(subject: Subject, image: Image.Image) -> Said:
    about = subject.about
    settings = {key: about[key] for key in ("shorter_side", "test_mode", "window")}
    (mask,) = segment(subject.model, image, **settings)
    classes = mask.cpu().numpy()
    drawn = Image.fromarray(overlay(np.asarray(image), classes, np.array(about["palette"], dtype=np.uint8)))
    counts = np.bincount(classes.ravel(), minlength=len(subject.labels))
    largest = [int(i) for i in np.argsort(-counts, kind="stable")[:TOP_K] if counts[i]]
    return Said({subject.labels[i]: float(counts[i]) / classes.size for i in largest}, _enlarged(drawn))


def _picture(pixels: Tensor) -> Image.Image:
    """Shares (3, H, W) as an image; what a filter drives out of the range is cut off."""
    return Image.fromarray((255 * pixels.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy())


def _visible(pixels: Tensor) -> Image.Image:
    return _enlarged(_picture(pixels))


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = max(1, _VISIBLE // max(picture.size))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def _log_magnitude(pixels: Tensor) -> Tensor:
    """The logarithm to the base 10 of the magnitudes, averaged over the colours: (H, W), DC in the centre."""
    magnitude = torch.fft.fft2(pixels.float(), norm="forward").abs().mean(0)
    return torch.fft.fftshift(magnitude).clamp_min(1e-12).log10()


def _draw_spectrum(spectrum: Tensor, strongest: float, low: float, high: float) -> Image.Image:
    height, width = spectrum.shape
    shown = functional.adaptive_max_pool2d(spectrum[None], (min(height, _BINS), min(width, _BINS)))[0]
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.subplots()
    # The zero frequency's bin is one right of and below the middle where a side is even.
    left, right = -2 * (width // 2) / width - 1 / width, 2 * ((width - 1) // 2) / width + 1 / width
    top, bottom = -2 * (height // 2) / height - 1 / height, 2 * ((height - 1) // 2) / height + 1 / height
    drawn = axes.imshow(
        shown.cpu().numpy(),
        extent=(left, right, bottom, top),
        cmap="magma",
        vmin=strongest - _DECADES,
        vmax=strongest,
        interpolation="nearest",
    )
    for share in {low, high} - {0.0}:
        if share < HIGHEST:
            axes.add_patch(Circle((0, 0), share, fill=False, color="deepskyblue", linestyle="--", linewidth=1.2))
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[-1, -0.5, 0, 0.5, 1], yticks=[-1, -0.5, 0, 0.5, 1])
    axes.set_aspect("equal")
    axes.set_xlabel("across, share of Nyquist")
    axes.set_ylabel("down, share of Nyquist")
    figure.colorbar(drawn, ax=axes, label="log10 of the magnitude", shrink=0.9)
    return _render(figure)


def _render(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(picture_of(figure, "").png)).convert("RGB")
