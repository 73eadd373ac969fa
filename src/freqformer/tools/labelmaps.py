"""Dense label maps of a training split, made by a teacher and kept as `freqformer.data.label_maps` says."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor

from ..data import Images, Samples, open_images, printable, whole_transform
from ..data.label_maps import Description, map_path, map_size, read_description, write_map
from ..engine.datamodule import evaluation_loader, worker_deaths
from ..errors import FreqFormerError
from ..tasks import require, require_size
from ..teachers import load_teacher, token_logits, weights_name


@dataclass
class LabelMapsConfig:
    """Which images, judged by whom."""

    teacher_model: str
    """The teacher: any model of timm or of this package with the data's classes."""
    output_dir: str
    """The folder of the maps; those that it holds already are kept."""
    teacher_path: str | None = None
    """Its weights, a file or a run's folder; by default, and with timm, those that timm publishes."""
    data_set: str = "IMNET"
    """A data set of `freqformer train`; its training split is mapped."""
    data_path: str | None = None
    """The folder the data set lies in."""
    input_size: int | tuple[int, int] | None = None
    """Image side in pixels, or [height, width], that the teacher sees; by default its own."""
    top_k: int = 5
    """Classes kept at each place."""
    batch_size: int = 32
    """Images per step."""
    num_workers: int = 2
    """Processes that load images."""
    device: str = "auto"
    """Where the teacher runs: cpu, cuda, or auto."""

    def check(self) -> None:
        """Refuse settings outside their range; raises FreqFormerError."""
        for name in ("batch_size", "top_k"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')}", "at least 1", getattr(self, name))
        require(self.num_workers >= 0, "--num-workers", "0 or more", self.num_workers)
        require_size(self.input_size)


@dataclass
class LabelMapsReport:
    """What was made."""

    folder: str
    made: int
    kept: int
    agreement: float | None
    """Share of the images made whose label is the best class of their mean logits; None of none."""
    unreadable: list[str]
    """Images that could not be read, and so have no map."""

    def __str__(self) -> str:
        agreement = "" if self.agreement is None else f"; the teacher agrees with {self.agreement:.1%} of their labels"
        skipped = f"; {len(self.unreadable)} images cannot be read, the first is " if self.unreadable else ""
        first = printable(self.unreadable[0]) if self.unreadable else ""
        return f"{self.folder}: {self.made} label maps made, {self.kept} kept{agreement}{skipped}{first}"


def make_label_maps(
    config: LabelMapsConfig, shown: Callable[[Any], Iterable[Any]] = lambda things: things
) -> LabelMapsReport:
    """Let a teacher map the images of a training split; stopped and started again it goes on.

    The teacher sees each image whole, squeezed to its input size, so that a map's grid lies over the whole image.

    Args:
        config: the images and the teacher.
        shown: passes on what it is given, showing progress.

    Returns:
        What was made.

    Raises:
        FreqFormerError: unusable settings, data or teacher, other classes, or a folder with other maps.
    """
    config.check()
    folder = Path(config.output_dir)
    images = open_images(config.data_set, config.data_path, "train")
    classes = len(images.classes)
    require(config.top_k <= classes, "--top-k", f"at most the {classes} classes", config.top_k)
    teacher = load_teacher(config.teacher_model, config.teacher_path, classes).to(_device(config.device))
    cfg: Any = teacher.pretrained_cfg
    size = to_2tuple(config.input_size) if config.input_size is not None else tuple(cfg["input_size"][1:])
    description = Description(
        teacher=config.teacher_model,
        weights=weights_name(config.teacher_path),
        num_classes=classes,
        top_k=config.top_k,
        grid=_grid(teacher, size),
        input_size=list(size),
    )
    _require_same(folder, description)
    root = None if config.data_path is None else Path(config.data_path).expanduser()
    missing = _missing(images, folder, root, description, shown)
    transform = whole_transform(size, mean=cfg["mean"], std=cfg["std"], interpolation=cfg["interpolation"])
    part = replace(images, targets=images.targets[missing], rows=images.rows[missing])
    loader = evaluation_loader(Samples(part, transform), config.batch_size, config.num_workers)
    right = 0
    unreadable: dict[str, None] = {}
    for batch in _guarded(shown(loader)) if missing else ():
        unreadable.update(dict.fromkeys(name for name, _ in batch.get("bad", ())))
        if len(batch["target"]) == 0:
            continue
        with torch.inference_mode():
            logits = token_logits(teacher, batch["image"].to(_device(config.device))).float()
        scores, best = best_classes(logits, config.top_k)
        for index, its_scores, its_best in zip(batch["index"].tolist(), scores.cpu(), best.cpu(), strict=True):
            write_map(map_path(folder, root, part.name(index)), its_scores, its_best)
        right += int((logits.mean(dim=(2, 3)).argmax(dim=1).cpu() == batch["target"]).sum())
    made = len(missing) - len(unreadable)
    return LabelMapsReport(
        str(folder), made, len(images) - len(missing), right / made if made else None, list(unreadable)
    )


def _guarded(batches: Iterable[Any]) -> Iterable[Any]:
    with worker_deaths():
        yield from batches


def best_classes(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best classes at each place and their scores.

    Logits are known up to a constant, and a map takes what it does not name for 0: the constant is chosen such that the
    softmax over a map gives the named classes the teacher's own probabilities.

    Args:
        logits: (B, classes, h, w).
        top_k: classes to name.

    Returns:
        Scores and classes, (B, K, h, w), best first.
    """
    scores, best = logits.topk(top_k, dim=1)
    others = logits.shape[1] - top_k
    if others:
        left_out = logits.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True) - math.log(others)
        scores = scores - left_out
    return scores, best


def _device(name: str) -> torch.device:
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise FreqFormerError(f"there is no device {name!r}: choose cpu, cuda or auto") from error


def _grid(teacher: torch.nn.Module, size: tuple[int, ...]) -> list[int]:
    """The teacher's last grid on images of a size."""
    image = torch.zeros(1, 3, *size, device=next(teacher.parameters()).device)
    try:
        with torch.inference_mode():
            return list(token_logits(teacher, image).shape[2:])
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FreqFormerError(f"the teacher does not take images of {size[0]}x{size[1]}: {reason}") from error


def _require_same(folder: Path, description: Description) -> None:
    """Describe a new folder of maps, or refuse one that holds others."""
    kept = read_description(folder)
    if kept is not None and kept != description:
        name, value = next((n, v) for n, v in asdict(kept).items() if getattr(description, n) != v)
        raise FreqFormerError(f"{folder} holds label maps with {name} {value}: choose another --output-dir")
    if kept is None:
        description.write(folder)


def _missing(
    images: Images, folder: Path, root: Path | None, description: Description, shown: Callable[[Any], Iterable[Any]]
) -> list[int]:
    """The images whose map is not there or was cut off."""
    size = map_size(description)
    owner: dict[str, int] = {}
    missing = []
    for i in shown(range(len(images))):
        path = map_path(folder, root, images.name(i))
        if (other := owner.setdefault(str(path), i)) != i:
            raise FreqFormerError(f"{images.name(other)} and {images.name(i)} would share a label map: rename one")
        if not (path.is_file() and path.stat().st_size == size):
            missing.append(i)
    return missing
