"""Segmentation masks: files of many kinds to one array of classes."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from freqformer.data.images import UnreadableImage, decode_with, turn_upright
from freqformer.errors import FreqFormerError

IGNORED = 255
"""The value of pixels without a class, whatever the files have there."""

_UNKNOWN = -1
_ORIENTATION = 0x112


@dataclass(frozen=True)
class MaskReader:
    """What the values or colours of mask files mean.

    Args:
        table: int16 (V,), the class of each value; ``IGNORED`` where it has none, -1 where it must not occur.
        colours: those that occur, as 0xRRGGBB in rising order, int32 (C,); None where colours say nothing.
        values: what each of these colours means, as if it were the value, int64 (C,).
        allowed: what other values are not, for errors: "none of the 11 classes and not --ignore-index 255".
    """

    table: np.ndarray
    colours: np.ndarray | None
    values: np.ndarray
    allowed: str

    @classmethod
    def of(
        cls,
        values: Sequence[int],
        places: np.ndarray,
        *,
        first: int = 0,
        ignore_index: int | None = 255,
        colours: np.ndarray | None = None,
    ) -> "MaskReader":
        """Build the reader of masks whose classes have given values.

        Args:
            values: the value of each class.
            places: the class that each becomes, int64 (len(values),).
            first: the value of the first class of the list; those below it mean no class.
            ignore_index: one more value that means no class, or None.
            colours: uint8 (N, 3), the colours of the values ``first``, ``first + 1``, ...; or None. Where two are the
                same they tell nothing.
        """
        allowed = f"none of the {len(values)} classes"
        ignored = list(range(first))
        if ignore_index is not None:
            allowed += f" and not --ignore-index {ignore_index}"
            ignored.append(ignore_index)
        table = np.full(max(255, *values, *ignored) + 2, _UNKNOWN, dtype=np.int16)
        table[list(values)] = places
        table[ignored] = IGNORED
        if colours is None or not _tell_apart(colours):
            return cls(table, None, np.empty(0, dtype=np.int64), allowed)
        codes = _codes(colours)
        order = np.argsort(codes, kind="stable")
        return cls(table, codes[order], order + first, allowed)

    def read(self, path: str, image: str) -> np.ndarray:
        """Read the mask of an image.

        Args:
            path: the mask's file: 1-bit, 8-, 16- or 32-bit grey or with a palette, whose values are read, or in colour.
            image: the path of the image, in whose name errors are.

        Returns:
            The classes, uint8 (H, W), ``IGNORED`` where there is none.

        Raises:
            UnreadableImage: the file is damaged, or a value or colour in it means nothing.
        """
        try:
            return self._classes(read_values(path, image))
        except UnreadableImage as error:
            raise UnreadableImage(image, f"its mask {path}: {error.reason}") from error.__cause__
        except ValueError as error:
            raise UnreadableImage(image, f"its mask {path}: {error}") from None

    def _classes(self, pixels: np.ndarray) -> np.ndarray:
        last = len(self.table) - 1  # Stands for all values that the table has no place for.
        if pixels.ndim == 3:
            if self.colours is None:
                raise ValueError("it is in colour, and no class file says which colour is which class")
            codes = _codes(pixels)
            place = np.searchsorted(self.colours, codes).clip(max=len(self.colours) - 1)
            values = np.where(self.colours[place] == codes, self.values[place], last)
        elif pixels.dtype == np.uint8:
            values = pixels
        else:
            values = np.where((pixels < 0) | (pixels >= last), last, pixels)
        classes = self.table[values]
        if (unknown := classes == _UNKNOWN).any():
            row, column = np.unravel_index(unknown.argmax(), unknown.shape)
            found = pixels[row, column]
            what = f"colour ({', '.join(map(str, found))})" if pixels.ndim == 3 else f"value {found}"
            allowed = "none of the class file's" if pixels.ndim == 3 else self.allowed
            raise ValueError(f"the {what} at row {row}, column {column} is {allowed}")
        return classes.astype(np.uint8)


def read_values(path: str, image: str | None = None) -> np.ndarray:
    """The pixels of a mask as they are stored: integers (H, W), or colours, uint8 (H, W, 3).

    Args:
        path: the mask's file.
        image: the path of its image. Where that is turned by its orientation, so is the mask by its own.

    Raises:
        UnreadableImage: the file is damaged, or its pixels are neither integers nor colours.
    """

    def finish(mask: Image.Image) -> np.ndarray:
        # A tag that only the mask has was never looked at by those who drew it.
        if image is not None and _turned(mask) and decode_with(_turned, image, image):
            mask = turn_upright(mask)
        if mask.mode == "F":
            raise ValueError("its pixels are floating-point numbers; save the classes as integers")
        if mask.mode in ("LA", "La"):
            mask = mask.getchannel("L")
        elif mask.mode == "PA":
            mask = mask.getchannel("P")
        elif mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
            mask = mask.convert("RGB")
        pixels = np.asarray(mask)
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels

    return decode_with(finish, path, path)


def check_kind(paths: Sequence[str], colours: np.ndarray | None, ignored: Sequence[int]) -> None:
    """Look at a few masks, and refuse at once what would make all of them unreadable or empty.

    Args:
        paths: the masks' files.
        colours: the classes' colours, uint8 (N, 3), or None.
        ignored: the values that mean no class.

    Raises:
        FreqFormerError: colour masks without a list of colours or with one colour for two classes; masks in black
            and white whose white is the ignored value.
    """
    looked_at = []
    for path in (paths[i] for i in np.linspace(0, len(paths) - 1, 8).astype(int)):
        with suppress(UnreadableImage):
            looked_at.append(read_values(path))
    if not looked_at:
        return
    if all(pixels.ndim == 3 for pixels in looked_at) and not _tell_apart(colours):
        why = "no class file gives the classes' colours" if colours is None else "two classes have the same one"
        raise FreqFormerError(
            f"the masks are in colour, as {paths[0]} is, and {why}: give --class-file with lines NAME,R,G,B, or save "
            "each class's number"
        )
    grey = [pixels for pixels in looked_at if pixels.ndim == 2]
    if 255 in ignored and set().union(*(np.unique(pixels).tolist() for pixels in grey)) == {0, 255}:
        raise FreqFormerError(
            f"the masks in {os.path.dirname(paths[0])} hold 0 and 255 alone, and 255 is the ignored value: "
            "save the classes as 0, 1, ..."
        )


def _tell_apart(colours: np.ndarray | None) -> bool:
    return colours is not None and len(np.unique(colours, axis=0)) == len(colours)


def _codes(colours: np.ndarray) -> np.ndarray:
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # As `turn_upright` does, which leaves such an image as it is.
        return False
