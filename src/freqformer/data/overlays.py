"""Masks as pictures: laid over their image, and as PNG files with a palette."""

import numpy as np
from PIL import Image

from freqformer.data.masks import IGNORED
from freqformer.errors import FreqFormerError

# As PASCAL VOC draws it.
_IGNORED_COLOUR = (224, 224, 192)


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Lay the classes' colours over an image.

    Args:
        image: uint8 (H, W, 3).
        mask: integers (H, W), the class of each pixel; where it is ``IGNORED``, the image stays as it is.
        palette: uint8 (K, 3), the colour of each class.
        alpha: the colours' share of the result, in 0..1.

    Returns:
        uint8 (H, W, 3).

    Raises:
        FreqFormerError: image and mask differ in size, or alpha is out of its range.
    """
    if image.shape[:2] != mask.shape:
        raise FreqFormerError(f"a mask of {mask.shape} pixels cannot lie over an image of {image.shape[:2]}")
    if not 0 <= alpha <= 1:
        raise FreqFormerError(f"an overlay's alpha must be in 0..1, not {alpha}")
    labelled = mask != IGNORED
    result = image.copy()
    blend = (1 - alpha) * image[labelled] + alpha * palette[mask[labelled]]
    result[labelled] = np.rint(blend).astype(np.uint8)
    return result


def colour_mask(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Make a mask's picture, whose pixels are the classes' numbers and which viewers show in their colours.

    Args:
        mask: integers (H, W), classes and ``IGNORED``.
        palette: uint8 (K, 3), the colour of each class.

    Returns:
        An image of mode P.
    """
    colours = np.zeros((IGNORED + 1, 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORED] = _IGNORED_COLOUR
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(colours.tobytes())
    return picture
