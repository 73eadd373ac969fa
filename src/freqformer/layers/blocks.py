"""The parts around a token mixer, on grids (B, H, W, C)."""

from collections.abc import Sequence

from timm.layers import DropPath, Mlp
from torch import Tensor, nn


class Block(nn.Module):
    """Norm, token mixer, norm, channel MLP, with one or two residuals.

    GFNet's blocks have one residual around both halves; transformer blocks have one around each.

    Args:
        dim: channels C.
        token_mixer: module on grids (B, H, W, C).
        mlp_ratio: hidden over input channels of the channel MLP.
        mixer_residual: whether the token mixer has a residual of its own.
        drop_path: probability of dropping a residual branch for a sample in training.
    """

    def __init__(
        self, dim: int, token_mixer: nn.Module, mlp_ratio: float, mixer_residual: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.mixer_residual = mixer_residual
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.token_mixer = token_mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the grid ``x`` (B, H, W, C)."""
        mixed = self.token_mixer(self.norm1(x))
        if self.mixer_residual:
            mixed = x = x + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm2(mixed)))


class Stage(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the grid ``x`` (B, H, W, C)."""
        return self.blocks(x)
