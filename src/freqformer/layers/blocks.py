"""The parts around a token mixer, on grids (B, H, W, C)."""

from collections.abc import Sequence

from timm.layers import DropPath, LayerScale
from timm.models import checkpoint_seq
from torch import Tensor, nn


class Block(nn.Module):
    """Norm, token mixer, norm, channel MLP, with one or two residuals.

    GFNet's blocks have one residual around both halves; transformer blocks have one around each.

    Args:
        dim: channels C.
        token_mixer: module on grids (B, H, W, C).
        mlp: module on grids (B, H, W, C).
        mixer_residual: whether the token mixer has a residual of its own.
        drop_path: probability of dropping a residual branch for a sample in training.
        norm_bias: whether the norms have a bias.
        layer_scale: initial value of a learned scale of the MLP's branch; None leaves it out.
        residual_scale: whether the shortcuts have a learned scale.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: nn.Module,
        mlp: nn.Module,
        *,
        mixer_residual: bool,
        drop_path: float,
        norm_bias: bool = True,
        layer_scale: float | None = None,
        residual_scale: bool = False,
    ) -> None:
        super().__init__()
        self.mixer_residual = mixer_residual
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, bias=norm_bias)
        self.token_mixer = token_mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, bias=norm_bias)
        self.mlp = mlp
        self.layer_scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.residual_scale1 = LayerScale(dim, 1.0) if residual_scale else nn.Identity()
        self.residual_scale2 = LayerScale(dim, 1.0) if residual_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the grid ``x`` (B, H, W, C)."""
        mixed = self.token_mixer(self.norm1(x))
        if self.mixer_residual:
            mixed = x = self.residual_scale1(x) + self.drop_path(mixed)
        return self.residual_scale2(x) + self.drop_path(self.layer_scale(self.mlp(self.norm2(mixed))))


class SpatialMlp(nn.Module):
    """A channel MLP with a 3x3 convolution of each hidden channel (Wang et al., PVT v2).

    Args:
        dim: channels C.
        hidden: hidden channels.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the grid ``x`` (B, H, W, C)."""
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))


class Stage(nn.Module):
    """Blocks at one resolution, what leads to them, and the norm that some families end a stage with.

    Args:
        blocks: the blocks.
        downsample: from the stage before.
        norm: after the blocks.
    """

    def __init__(
        self, blocks: Sequence[Block], downsample: nn.Module | None = None, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample or nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm or nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Transform the grid ``x`` (B, H, W, C)."""
        x = self.downsample(x)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)
        return self.norm(x)
