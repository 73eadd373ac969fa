"""Labelled images that are read one at a time, and the decoder that every encoded image goes through."""

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from freqformer.errors import FreqFormerError

# Only what photographs come in: among Pillow's other formats are some that start programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

Source = str | Path | Image.Image
"""An image: its path, or the image itself."""
_Decoded = TypeVar("_Decoded")


class UnreadableImage(FreqFormerError):
    """One image cannot be read; training and evaluation go on without it, and count it.

    Args:
        name: the image's own name, whatever characters it has.
        reason: what is wrong with it, in a line.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, printable(reason)
        super().__init__(f"cannot read image {printable(name)}: {self.reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


def printable(name: str) -> str:
    """A name on one line of plain text: line breaks, control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in name)


@dataclass(frozen=True)
class Images:
    """Labelled images of one split; a sequence that decodes an image when it is asked for.

    ``rows`` says what the source calls each image, so that a part of a split shares its source; everything
    large is a NumPy array or one bytes object, which worker processes share and pickle cheaply.

    Args:
        classes: label names in the order of the targets.
        targets: int64 (N,).
        rows: int64 (N,), the numbers that ``read`` and ``identify`` take.
        read: picklable; from a row to an RGB image.
        identify: picklable; from a row to a name for people.
        root: the folder that the images lie in, where they do; when it is gone, so are they all.
    """

    classes: list[str]
    targets: np.ndarray
    rows: np.ndarray
    read: Callable[[int], Image.Image]
    identify: Callable[[int], str]
    root: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, i: int) -> Image.Image:
        """Return the i-th image in RGB; raises UnreadableImage if it cannot be read."""
        return self.read(int(self.rows[i]))

    def name(self, i: int) -> str:
        """Return the path of the i-th image, or an id such as ``cifar10/test/000123``."""
        return self.identify(int(self.rows[i]))


def read_array(pixels: np.ndarray, row: int) -> Image.Image:
    """Return image ``row`` of uint8 pixels, (N, H, W) grey or (N, H, W, 3) colour, in RGB."""
    return Image.fromarray(pixels[row]).convert("RGB")


def identify_number(prefix: str, row: int) -> str:
    """Return ``prefix`` and a six-digit number."""
    return f"{prefix}/{row:06d}"


def decode(
    source: str | Path | bytes,
    name: str,
    *,
    upright: bool = True,
    admit: Callable[[int, int], str | None] | None = None,
) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    The first frame is taken of an animation, transparency is dropped and 16-bit grey is scaled to 8 bits.

    Args:
        source: a path, or the file's bytes.
        name: what an error calls the image.
        upright: apply the EXIF orientation.
        admit: see `decode_with`.

    Returns:
        A loaded image of mode RGB.

    Raises:
        UnreadableImage: ``cannot read image NAME: reason``.
    """
    return decode_with(lambda image: _to_rgb(turn_upright(image) if upright else image), source, name, admit=admit)


def decode_with(
    finish: Callable[[Image.Image], _Decoded],
    source: str | Path | bytes,
    name: str,
    *,
    admit: Callable[[int, int], str | None] | None = None,
) -> _Decoded:
    """Open an image file and make something of its pixels.

    Args:
        finish: from the loaded image, its first frame, as it is stored; what it raises makes the image unreadable.
        source: a path, or the file's bytes.
        name: what an error calls the image.
        admit: is asked with the width and height that the file's header tells, before any pixel is decoded; what it
            says, other than None, is why the image is not read.

    Returns:
        What ``finish`` makes.

    Raises:
        UnreadableImage: ``cannot read image NAME: reason``.
    """
    try:
        size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        if size == 0:
            raise UnreadableImage(name, "it is empty (0 bytes)")
        # Pillow warns of odd metadata and of large pictures, neither of which harms the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=_FORMATS) as image:
                if admit is not None and (refusal := admit(*image.size)) is not None:
                    raise UnreadableImage(name, refusal)
                image.load()
                return finish(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(name, f"not an image in one of {', '.join(_FORMATS)}") from None
    except Image.DecompressionBombError as error:
        # Pillow goes on to speak of an attack.
        raise UnreadableImage(name, str(error).partition(", could")[0]) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImage(name, " ".join(reason.split()) or type(error).__name__) from error


def upright_size(path: str) -> tuple[int, int] | None:
    """Return (H, W) of an image file as `decode` would give it, from its header alone; None where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                # The tag of the orientation; from 5 on the image lies on its side.
                turned = image.getexif().get(0x0112, 1) in range(5, 9)
                return image.size if turned else image.size[::-1]
    except Exception:  # As of `decode`.
        return None


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image in place as its EXIF orientation says; return it."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # Damaged metadata says nothing of the orientation; the pixels are sound.
        return image
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")
