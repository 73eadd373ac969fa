"""VTAB-1k: the 19 tasks of the Visual Task Adaptation Benchmark with a thousand training images each."""

from pathlib import Path
from typing import NamedTuple

from freqformer.data.files import open_files, require_some
from freqformer.data.images import Images, printable
from freqformer.errors import FreqFormerError


class VtabTask(NamedTuple):
    """A task: the folder it lies in, its number of classes and the group it counts to."""

    folder: str
    classes: int
    group: str


VTAB_TASKS: dict[str, VtabTask] = {
    "cifar100": VtabTask("cifar", 100, "Natural"),
    "caltech101": VtabTask("caltech101", 102, "Natural"),
    "dtd": VtabTask("dtd", 47, "Natural"),
    "flowers": VtabTask("oxford_flowers102", 102, "Natural"),
    "pets": VtabTask("oxford_iiit_pet", 37, "Natural"),
    "svhn": VtabTask("svhn", 10, "Natural"),
    "sun397": VtabTask("sun397", 397, "Natural"),
    "camelyon": VtabTask("patch_camelyon", 2, "Specialised"),
    "eurosat": VtabTask("eurosat", 10, "Specialised"),
    "resisc45": VtabTask("resisc45", 45, "Specialised"),
    "retino": VtabTask("diabetic_retinopathy", 5, "Specialised"),
    "clevr-count": VtabTask("clevr_count", 8, "Structured"),
    "clevr-distance": VtabTask("clevr_dist", 6, "Structured"),
    "dmlab": VtabTask("dmlab", 6, "Structured"),
    "kitti": VtabTask("kitti", 4, "Structured"),
    "dsprites-location": VtabTask("dsprites_loc", 16, "Structured"),
    "dsprites-orientation": VtabTask("dsprites_ori", 16, "Structured"),
    "smallnorb-azimuth": VtabTask("smallnorb_azi", 18, "Structured"),
    "smallnorb-elevation": VtabTask("smallnorb_ele", 9, "Structured"),
}
"""Every task by FreqFit's short name, in the order of the papers' tables."""

VTAB_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for name, task in VTAB_TASKS.items() if task.group == group)
    for group in ("Natural", "Specialised", "Structured")
}
"""The names of each group's tasks, in the same order."""

VTAB_SPLITS = ("train", "val", "train800", "val200", "train800val200", "test")

_BOTH = "train800val200"
_CALLED = {"train": _BOTH, "val": "test"}


def open_vtab(name: str, root: Path, split: str) -> Images:
    """Open one split of a task of VTAB-1k in the layout that NOAH's release has and others share.

    A split is a text file of lines ``images/train800val200/000000.jpg 5``: a path below the task's folder and a
    class's number from 0, by which classes are called.

    Args:
        name: one of ``VTAB_TASKS``.
        root: the folder above the tasks' folders or above ``vtab-1k``, or the task's own.
        split: one of ``VTAB_SPLITS``, where "train" is ``train800val200`` and "val" is ``test``. Where there is no
            ``train800val200.txt`` it is ``train800.txt`` followed by ``val200.txt``.

    Returns:
        The images in the lists' order.

    Raises:
        FreqFormerError: a list is missing, or has a line of another form or a class that the task has not.
    """
    task = VTAB_TASKS[name]
    wanted = _CALLED.get(split, split)
    folder = _folder(name, root)
    lists = [folder / f"{wanted}.txt"]
    if wanted == _BOTH and not lists[0].is_file():
        lists = [folder / "train800.txt", folder / "val200.txt"]
    rows = [row for file in lists for row in _read(name, file, task.classes)]
    paths = [str(folder / path) for path, _ in rows]
    require_some(name, folder, paths)
    return open_files([str(number) for number in range(task.classes)], paths, [number for _, number in rows], folder)


def _folder(name: str, root: Path) -> Path:
    own = VTAB_TASKS[name].folder
    others = {task.folder for task in VTAB_TASKS.values()} - {own}
    places = [root / own, root / "vtab-1k" / own, *([] if root.name in others else [root])]
    for place in places:
        if any((place / f"{split}.txt").is_file() for split in VTAB_SPLITS):
            return place
    raise FreqFormerError(
        f"{name}: none of {', '.join(map(str, places))} has train800.txt, val200.txt, {_BOTH}.txt or test.txt; "
        "check --data-path"
    )


def _read(name: str, file: Path, classes: int) -> list[tuple[str, int]]:
    try:
        lines = file.read_text("utf-8", errors="surrogateescape").split("\n")
    except FileNotFoundError as error:
        raise FreqFormerError(f"{name}: there is no {file}; unpack the data set again") from error
    except OSError as error:
        raise FreqFormerError(f"{name}: cannot read {file}: {error.strerror}; unpack the data set again") from error
    rows = []
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, number = [*line.rsplit(maxsplit=1), ""][:2]
        # int() would take signs, underscores and other scripts' digits.
        if not (number.isascii() and number.isdigit()):
            raise FreqFormerError(
                f"{name}: line {place} of {file} must be a path and a class's number, not {printable(line)[:80]!r}"
            )
        if int(number) >= classes:
            raise FreqFormerError(
                f"{name}: line {place} of {file} has the class {number}, but there are {classes} (0 to {classes - 1})"
            )
        rows.append((path.lstrip(), int(number)))
    return rows
