"""What depends on the size of a grid, made in the graph: one exported file then runs at every size.

While a graph is exported for any image size, the size is a symbol (``torch.SymInt``) that no Python branch may look
at. So the transform's matrices, and those that fit a filter or a position embedding to the grid, are arithmetic on
integer tensors here. Phases and positions are reduced as integers first: in floating point they would lose digits
as the grid grows.
"""

import math

import torch
from torch import Tensor

Size = int | torch.SymInt


def is_symbolic(*sizes: Size) -> bool:
    """Whether any of the sizes is a symbol."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def transform_matrices(height: Size, width: Size, device: torch.device) -> tuple[Tensor, ...]:
    """The real transform and its inverse, ortho-scaled, on (real, imaginary) pairs.

    Args:
        height: H in tokens.
        width: W in tokens; F = W//2+1.
        device: where to make them.

    Returns:
        float64: forward along W (2F, W) and along H (2H, 2H), inverse along H (2H, 2H) and along W (W, 2F).
    """
    cos, sin = (wave / _root(width, device) for wave in waves(width // 2 + 1, width, device))
    counts = column_counts(width, device).unsqueeze(1)
    # The imaginary part of the self-conjugate columns drops out, as defined, because sin is zero there.
    along_w, back_w = torch.cat([cos, -sin]), torch.cat([counts * cos, -counts * sin]).T
    cos, sin = (wave / _root(height, device) for wave in waves(height, height, device))
    return along_w, _complex_matrix(cos, -sin), _complex_matrix(cos, sin), back_w


def waves(frequencies: Size, length: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi k n / length as float64, (frequencies, length), the sine exact at multiples of pi.

    Of symbols they are as exact as float32.
    """
    count = _scalar(length, device)
    phase = torch.arange(frequencies, device=device).unsqueeze(1) * torch.arange(length, device=device) % count
    angle = phase.double() * (2 * math.pi / count.double())
    if is_symbolic(frequencies, length):
        # Older ONNX Runtimes have no cosine in float64.
        angle = angle.float()
    return angle.cos().double(), torch.where(2 * phase % count == 0, 0.0, angle.sin().double())


def column_counts(width: Size, device: torch.device) -> Tensor:
    """How many columns of the whole spectrum each of the half stands for, (F,) in float64: 1 if self-conjugate."""
    self_conjugate = 2 * torch.arange(width // 2 + 1, device=device) % _scalar(width, device) == 0
    return torch.where(self_conjugate, 1.0, 2.0).double()


def stretch_matrix(length: int, size: Size, device: torch.device, *, align_corners: bool) -> Tensor:
    """Bicubic interpolation of ``length`` values to ``size``, as ``F.interpolate`` does it: float64 (size, length)."""
    outputs = torch.arange(size, device=device)
    count = _scalar(size, device)
    # The position as a fraction of integers, moved up by one so that the quotient is not negative.
    if align_corners:
        divisor = (count - 1).clamp_min(1)
        position = outputs * (length - 1) + divisor
    else:
        divisor = 2 * count
        position = (2 * outputs + 1) * length - count + divisor
    below = position // divisor
    rest = (position - below * divisor).double() / divisor.double()
    matrix = torch.zeros((), dtype=torch.float64, device=device)
    for tap in range(-1, 3):
        source = (below - 1 + tap).clamp(0, length - 1)
        hit = source.unsqueeze(1) == torch.arange(length, device=device)
        matrix = matrix + hit.double() * _cubic((rest - tap).abs()).unsqueeze(1)
    return matrix


def crop_pad_matrix(length: int, size: Size, device: torch.device) -> Tensor:
    """What takes circular positions to those of the same signed shift, cut or filled with zeros.

    What lies half an even side away stands for both directions and is shared between them. It makes up for the
    other scale of an ortho transform of another length.

    Returns:
        float64 (size, length).
    """
    moves = [
        (shift, position, 0.5 if 2 * abs(shift) == length else 1.0)
        for position in range(length)
        for shift in (position, position - length)
        if 2 * abs(shift) <= length
    ]
    count = _scalar(size, device)
    shifts = torch.tensor([shift for shift, _, _ in moves], device=device)
    sources = torch.tensor([position for _, position, _ in moves], device=device)
    shares = torch.tensor([share for _, _, share in moves], dtype=torch.float64, device=device)
    # A shift of at most half the size: adding the size once makes it a position.
    reached = (shifts + count) % count == torch.arange(size, device=device).unsqueeze(1)
    kept = reached & (2 * shifts.abs() <= count)
    picked = (sources.unsqueeze(1) == torch.arange(length, device=device)).double() * shares.unsqueeze(1)
    return (kept.double() @ picked) * (count.double() / length).sqrt()


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.75, as torch has it, for distances up to 2."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


def _complex_matrix(real: Tensor, imag: Tensor) -> Tensor:
    """The complex (K, N) matrix as a real (K * P, N * P) one on interleaved real and imaginary parts."""
    rows = torch.stack([torch.stack([real, -imag], -1), torch.stack([imag, real], -1)], 1)
    return rows.flatten(2).flatten(0, 1)


def _scalar(size: Size, device: torch.device) -> Tensor:
    """A size as an integer tensor: exporters cannot reduce modulo a symbol."""
    return torch.full((), size, dtype=torch.int64, device=device)


def _root(size: Size, device: torch.device) -> Tensor:
    return _scalar(size, device).double().sqrt()
