"""What a classifier is trained on: cross-entropy, a teacher's opinion, labels of every token."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import labels_in
from ..errors import FreqFormerError
from ..models import SpectralNet
from ..teachers import Teacher
from .task import Batch

Criterion = Callable[[SpectralNet, Tensor, Tensor, Batch], Tensor]
"""From the network, mixed images (B, 3, H, W), their classes (B,) or probabilities (B, classes), and the batch they
came in, to a scalar."""


class CrossEntropy:
    """Cross-entropy with label smoothing.

    Args:
        smoothing: the share of the target that all classes divide.
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, model: SpectralNet, image: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(model(image), target, label_smoothing=self.smoothing)


class Distillation:
    """Cross-entropy mixed with a teacher's opinion of the same images (Touvron et al., DeiT, ICML 2021).

    Args:
        teacher: judges the mixed images.
        kind: ``"soft"`` (Hinton et al., 2015) or ``"hard"``.
        alpha: the teacher's share.
        tau: the temperature of soft distillation.
        smoothing: label smoothing of the true targets.
    """

    def __init__(self, teacher: Teacher, kind: str, alpha: float, tau: float, smoothing: float) -> None:
        self.teacher, self.kind, self.alpha, self.tau, self.smoothing = teacher, kind, alpha, tau, smoothing

    def __call__(self, model: SpectralNet, image: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch."""
        logits = model(image)
        opinion = self.teacher(image)
        true = F.cross_entropy(logits, target, label_smoothing=self.smoothing)
        taught = (
            soft_distillation(logits, opinion, self.tau) if self.kind == "soft" else hard_distillation(logits, opinion)
        )
        return (1 - self.alpha) * true + self.alpha * taught


def soft_distillation(logits: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau² times the divergence of the student's distribution from the teacher's, both softened by tau.

    Args:
        logits: (B, classes).
        teacher: its logits, (B, classes).
        tau: the temperature.

    Returns:
        The mean over the batch, a scalar.
    """
    student, taught = (F.log_softmax(scores.float() / tau, dim=1) for scores in (logits, teacher))
    return tau**2 * F.kl_div(student, taught, reduction="batchmean", log_target=True)


def hard_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher finds the most probable, a scalar; both (B, classes)."""
    return F.cross_entropy(logits, teacher.argmax(dim=1))


class TokenLabels:
    """Mix-token and the labels of every token (Jiang et al., "All Tokens Matter", NeurIPS 2021).

    A box of the first grid is taken from the sample opposite in the batch, and the tokens' logits are put back before
    they meet their labels. With label maps these say what the tokens and the whole image show; otherwise the image's
    target stands for every token.

    Args:
        num_classes: classes.
        cls_weight: weight of the whole image's cross-entropy.
        dense_weight: weight of the tokens'.
        smoothing: label smoothing of both.
        compile: whether to compile the network; its own compiled call gives no tokens.
    """

    def __init__(
        self, num_classes: int, cls_weight: float, dense_weight: float, smoothing: float, *, compile: bool = False
    ) -> None:
        self.num_classes, self.smoothing, self.compile = num_classes, smoothing, compile
        self.forward: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.cls_weight, self.dense_weight = cls_weight, dense_weight

    def __call__(self, model: SpectralNet, image: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch; it draws the box from torch's CPU generator."""
        if self.forward is None:
            from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

            # A network that is sharded gathers its parameters for calls that it knows of.
            if isinstance(model, FSDPModule):
                register_fsdp_forward_method(model, "forward_tokens")
            self.forward = torch.compile(model.forward_tokens) if self.compile else model.forward_tokens
        grids = model.grids((image.shape[2], image.shape[3]))
        swap = draw_box(grids[-1]).to(image.device)
        if "label_map" in batch:
            maps = batch["label_map"], batch["region"]
            tokens_target = labels_in(*maps, grids[-1], self.num_classes)
            target = labels_in(*maps, (1, 1), self.num_classes)[:, :, 0, 0]
        else:
            target = target if target.ndim == 2 else F.one_hot(target, self.num_classes).float()
            tokens_target = target[:, :, None, None].expand(-1, -1, *grids[-1])
        logits, tokens = self.forward(image, _enlarged(swap, grids))
        own = 1 - swap.float().mean()
        mixed = own * target + (1 - own) * target.flip(0)
        tokens = torch.where(swap[..., None], tokens.flip(0), tokens).permute(0, 3, 1, 2)
        whole = F.cross_entropy(logits, mixed, label_smoothing=self.smoothing)
        dense = F.cross_entropy(tokens, tokens_target, label_smoothing=self.smoothing)
        return self.cls_weight * whole + self.dense_weight * dense


def draw_box(grid: tuple[int, int]) -> Tensor:
    """A box of a grid (H, W) with CutMix's law for a uniform share, bool (H, W); it may be empty or everything."""
    share = float(torch.rand(()))
    inside = []
    for side in grid:
        half = int(side * share**0.5) // 2
        centre = int(torch.randint(side, ()))
        places = torch.arange(side)
        inside.append((places >= centre - half) & (places < centre + half))
    return inside[0][:, None] & inside[1]


def require_token_grid(model: SpectralNet, size: int | None) -> None:
    """Refuse a model without a classifier of tokens, or labels of another grid than its last.

    Args:
        model: the network.
        size: ``--token-label-size``; None takes the grid as it is.

    Raises:
        FreqFormerError: naming the flag.
    """
    if model.token_head is None:
        raise FreqFormerError(
            "--token-label needs a classifier of tokens: choose a pyramid, such as spectformer_h_s or freqformer_h_s"
        )
    grid = model.grids(model.img_size)[-1]
    if size is not None and grid != (size, size):
        raise FreqFormerError(f"--token-label-size must be the model's last grid, {grid[0]}x{grid[1]}, not {size}")


def _enlarged(swap: Tensor, grids: list[tuple[int, int]]) -> Tensor:
    """A mask of the last grid on the first; between two stages a grid is halved, rounding up."""
    step = 2 ** (len(grids) - 1)
    return swap.repeat_interleave(step, 0).repeat_interleave(step, 1)[: grids[0][0], : grids[0][1]]
