"""From the last grid to a vector, and from the vector to classes."""

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from .activations import SquaredReLU


class ClassAttention(nn.Module):
    """Attention of one class token to itself and all tokens (Touvron et al., CaiT).

    Args:
        dim: channels C.
        num_heads: heads, a divisor of C.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, 1 + N, C), the class token first, to its update (B, C)."""
        batch, count, channels = tokens.shape
        size = channels // self.num_heads
        q = self.q(tokens[:, 0]).reshape(batch, self.num_heads, 1, size)
        k, v = self.kv(tokens).reshape(batch, count, 2, self.num_heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * size**-0.5) @ k.transpose(-2, -1)
        return self.proj((scores.softmax(dim=-1) @ v).reshape(batch, channels))


class ClassBlock(nn.Module):
    """Pools a grid: the mean token attends to all tokens, then passes an MLP.

    Args:
        dim: channels C.
        num_heads: heads of the attention.
        mlp_ratio: hidden over input channels of the MLP.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Pool the grid ``x`` (B, H, W, C) to (B, C)."""
        tokens = x.flatten(1, 2)
        token = tokens.mean(dim=1)
        token = token + self.attn(self.norm1(torch.cat([token.unsqueeze(1), tokens], dim=1)))
        return token + self.mlp(self.norm2(token))


class MeanPool(nn.Module):
    """Pools a grid to its mean token."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool the grid ``x`` (B, H, W, C) to (B, C)."""
        return x.mean(dim=(1, 2))


class MlpHead(nn.Module):
    """DFFormer's classifier: linear, squared ReLU, norm, linear.

    Args:
        dim: channels C.
        num_classes: classes.
        drop_rate: dropout before the last layer.
    """

    def __init__(self, dim: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = SquaredReLU()
        self.norm = nn.LayerNorm(4 * dim)
        self.dropout = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, C) to logits (B, classes)."""
        return self.fc2(self.dropout(self.norm(self.act(self.fc1(x)))))
