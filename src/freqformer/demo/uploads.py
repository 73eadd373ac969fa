"""Images that visitors send: bounded before a pixel is decoded, and of a size to work with."""

from functools import lru_cache
from pathlib import Path

from PIL import Image

from ..data import UnreadableImage, decode
from ..errors import FreqFormerError

MAX_BYTES = 20 * 2**20
MAX_SIDE = 12_000
MAX_PIXELS = 40_000_000
# A classifier enlarges the shorter side to its input: a line of pixels would become gigabytes.
MAX_ASPECT = 20
WORKING_SIDE = 2048
"""Larger images are shrunk to this longer side, in pixels."""


def uploaded(sent: object, folder: Path) -> str:
    """The path of an uploaded file.

    Args:
        sent: what the page's functions were called with, which need not come from the page.
        folder: where uploads are kept; no file elsewhere is opened.

    Raises:
        FreqFormerError: it names no file in the folder.
    """
    path = sent.get("path") if isinstance(sent, dict) else None
    try:
        inside = isinstance(path, str) and Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        inside = False
    if not inside:
        raise FreqFormerError("only images that are sent to this page are opened")
    return str(path)


@lru_cache(maxsize=8)
def read_upload(path: str) -> Image.Image:
    """An image file as the page works with it.

    Args:
        path: of the file; its name is in no message, as the server has chosen it.

    Returns:
        RGB, upright, at most `WORKING_SIDE` pixels a side; it is shared, so nobody may change it.

    Raises:
        FreqFormerError: no image, or one beyond the bounds.
    """
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise FreqFormerError(f"the file is larger than {MAX_BYTES // 2**20} MB: send a smaller one")
        image = decode(path, "upload", admit=_refusal)
    except FileNotFoundError:
        raise FreqFormerError("the image is no longer on the server: send it again") from None
    except UnreadableImage as error:
        raise FreqFormerError(f"this file cannot be used as an image: {error.reason}") from None
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return image


def _refusal(width: int, height: int) -> str | None:
    """Why an image of this size is not decoded, if so."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        most = f"{MAX_PIXELS // 1_000_000} million pixels and {MAX_SIDE} a side"
        return f"it has {width}×{height} pixels, and at most {most} are accepted"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"it has {width}×{height} pixels: one side is more than {MAX_ASPECT} times as long as the other"
    return None
