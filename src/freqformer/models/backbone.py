"""The one network class: a stem, a stage of blocks, a head. A family is a list of parts, not a forward."""

from math import ceil
from typing import Any

import torch
from timm.layers import PatchEmbed, to_2tuple, trunc_normal_
from torch import Tensor, nn

from ..layers import Attention, Block, GlobalFilter, Stage
from ..ops import stretch_position


class SpectralNet(nn.Module):
    """A classifier whose first blocks mix tokens by a global filter and whose deeper ones attend.

    ``spectral_depth == depth`` is GFNet (Rao et al. 2021), 4 is SpectFormer and FreqFormer (Patro et al.
    2023), 0 a ViT without class token. Runs on any image size: filters and position embedding are
    resampled from the native grid, and images that no patch divides are padded with zeros at the bottom
    and the right.

    Args:
        img_size: native image size in pixels, one number or (H, W); it fixes the native grid.
        patch_size: side of a patch in pixels.
        in_chans: image channels.
        num_classes: classes; 0 leaves out the classifier, so ``forward`` returns pooled features.
        embed_dim: channels C of the grid.
        depth: blocks.
        spectral_depth: how many of the first blocks are spectral.
        num_heads: attention heads.
        mlp_ratio: hidden over input channels of the channel MLPs.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        global_pool: ``"avg"``, the mean over the tokens.

    Raises:
        ValueError: a spectral depth outside 0..depth, or another pooling.
    """

    pretrained_cfg: dict[str, Any]
    """timm's description, set by its factory: preprocessing, and ``label_names`` where a checkpoint has them."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 12,
        spectral_depth: int = 4,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if not 0 <= spectral_depth <= depth:
            raise ValueError(f"spectral_depth must be between 0 and depth {depth}, got {spectral_depth}")
        if global_pool != "avg":
            raise ValueError(f"global_pool must be 'avg', got {global_pool!r}")
        height, width = to_2tuple(img_size)
        self.img_size = (height, width)
        self.grid_size = (ceil(height / patch_size), ceil(width / patch_size))
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim

        self.stem = PatchEmbed(
            img_size=None,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            output_fmt="NHWC",
            dynamic_img_pad=True,
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, *self.grid_size, embed_dim))
        drop_paths = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        blocks = [
            Block(
                embed_dim,
                GlobalFilter(embed_dim, self.grid_size) if spectral else Attention(embed_dim, num_heads),
                mlp_ratio,
                mixer_residual=not spectral,
                drop_path=drop_paths[index],
            )
            for index, spectral in enumerate(i < spectral_depth for i in range(depth))
        ]
        self.stages = nn.Sequential(Stage(blocks))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier(embed_dim, num_classes)

        trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_linear)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the normalised last grid (B, H', W', C)."""
        x = self.stem(x)
        grid = (x.shape[1], x.shape[2])
        x = x + (self.pos_embed if grid == self.grid_size else stretch_position(self.pos_embed, grid))
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A grid (B, H, W, C) to logits (B, classes), or to pooled features (B, C) with ``pre_logits``."""
        x = self.head_drop(x.mean(dim=(1, 2)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last linear layer (identity when there are no classes)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one for ``num_classes`` classes (0: none)."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be 'avg', got {global_pool!r}")
        self.num_classes = num_classes
        head = _classifier(self.embed_dim, num_classes)
        self.head = head.to(self.pos_embed.device, self.pos_embed.dtype).apply(_init_linear)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, beside norms and biases."""
        return {"pos_embed"}


def _classifier(dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def default_cfg(img_size: int = 224, crop_pct: float = 0.875, **changes: Any) -> dict[str, Any]:
    """timm's description of an entry point: native input, preprocessing and the ends' module names."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, img_size, img_size),
        "pool_size": None,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.proj",
        "classifier": "head",
        **changes,
    }
