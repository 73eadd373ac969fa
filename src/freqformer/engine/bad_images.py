"""Images that cannot be read: counted, listed, and too many of them stop the run."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ..data import UnreadableImage, decode, printable
from ..errors import FreqFormerError, RunFailed
from .processes import gathered, largest

BAD_IMAGES = "bad_images.csv"
_HEADER = ("image", "reason", "split")


class BadImages(Callback):
    """Counts the images that a run goes on without, and stops it when they are more than a limit.

    The list lies in the run's folder, and is all there is: every process adds its lines to the same file and
    counts those of the others, and a resumed run counts on. Where no folder is given they are counted alone.

    Args:
        limit: how many different images may be bad.
        folder: the run's folder.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit = limit
        self.file = None if folder is None else folder / BAD_IMAGES
        self.names: dict[str, None] = {}
        self._mended: set[str] = set()
        self.left_out = 0
        """Images that the last evaluation did without, in this process."""
        self._evaluated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what an interrupted run has found, but for the images that can be read by now."""
        self._read()
        self._mended = {name for name in self.names if _is_readable(name)}
        self.names = {name: None for name in self.names if name not in self._mended}
        self._refuse_too_many()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count a batch's bad images; a batch of nothing else cannot be trained on."""
        if bad := _bad(batch):
            self._add(bad, "train", trainer.train_dataloader)
            if len(batch["target"]) == 0:
                raise FreqFormerError(
                    f"none of a batch's images can be read, the first is {printable(bad[0][0])}: {bad[0][1]}"
                )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count what this evaluation does without."""
        self.left_out, self._evaluated = 0, False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch's bad images."""
        bad = _bad(batch)
        self._evaluated |= not bad or len(batch["target"]) > 0
        if bad:
            self.left_out += len(bad)
            self._add(bad, "val", trainer.val_dataloaders)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without a single image there are no figures; without a list in a folder the processes add up here."""
        if self.file is None:
            self.names = dict.fromkeys(name for names in gathered(list(self.names)) for name in names)
            self._refuse_too_many()
        if not largest(int(self._evaluated)):
            raise FreqFormerError(f"none of the images to evaluate on can be read, the first is {self._first()}")

    def summary(self) -> str | None:
        """A line about what was skipped, if anything was, by any process."""
        self._read()
        if not self.names:
            return None
        where = "" if self.file is None else f"; {self.file} lists them"
        return f"skipped {_images(len(self.names))} that cannot be read, the first is {self._first()}{where}"

    def _add(self, bad: list[tuple[str, str]], split: str, loader: Any) -> None:
        if all(name in self.names for name, _ in bad):
            return
        # Not one bad image but all: listed they would stand in the way of the resumed run.
        then = "try again" if self.file is None else "continue with --resume"
        _require_folder(getattr(getattr(loader, "dataset", None), "root", None), then)
        listed = self._read()
        new = {name: reason for name, reason in bad if name not in self.names}
        self._mended -= new.keys()
        # What has an image that can be read and a mask that cannot is listed, and was taken for mended.
        self._append([(name, reason, split) for name, reason in new.items() if name not in listed])
        self.names.update(dict.fromkeys(new))
        self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        if len(self.names) > self.limit:
            where = "" if self.file is None else f"; {self.file} lists them"
            raise FreqFormerError(
                f"{_images(len(self.names))} cannot be read, more than --max-bad-images {self.limit}; "
                f"the first is {self._first()}{where}"
            )

    def _first(self) -> str:
        return printable(next(iter(self.names)))

    def _read(self) -> set[str]:
        """Take in what the file lists, by this process or another; return the names, those mended since among them."""
        if self.file is None or not self.file.exists():
            return set()
        with self.file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = [row for row in csv.reader(stream) if len(row) == len(_HEADER) and tuple(row) != _HEADER]
        self.names.update({name: None for name, *_ in rows if name not in self._mended})
        return {name for name, *_ in rows}

    def _append(self, rows: list[tuple[str, str, str]]) -> None:
        if self.file is None or not rows:
            return
        text = io.StringIO()
        writer = csv.writer(text)
        if not self.file.exists():
            writer.writerow(_HEADER)
        writer.writerows(rows)
        try:
            # In one write at the file's end: a kill loses nothing, and processes do not write into each other's lines.
            handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(handle, text.getvalue().encode("utf-8", "surrogateescape"))
            finally:
                os.close(handle)
        except OSError as error:
            raise FreqFormerError(f"cannot write {self.file}: {error.strerror}; continue with --resume") from error


def _is_readable(name: str) -> bool:
    if not os.path.exists(name):
        return False
    try:
        decode(name, name)
    except UnreadableImage:
        return False
    return True


def _bad(batch: Any) -> list[tuple[str, str]]:
    return batch.get("bad", []) if isinstance(batch, dict) else []


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _require_folder(root: str | None, then: str) -> None:
    """Refuse to call images bad whose folder is gone; where a disk was mounted an empty folder stays."""
    if root is None:
        return
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return
        what = "is empty"
    except OSError as error:
        what = "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    raise RunFailed(f"the folder {printable(root)} {what}; {then} once it is back")
