"""What is made from the size of a grid, as numbers and inside an exported graph."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental import _config as symbolic_shapes

from freqformer.ops import dynamic_filter, fit_filter, global_filter, stretch_position, use_lowering
from freqformer.ops.symbolic import crop_pad_matrix, stretch_matrix, transform_matrices

CPU = torch.device("cpu")
sides = st.integers(1, 30)


@given(sides, sides)
def test_the_matrices_are_the_transforms(height, width):
    x = torch.randn(height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    along_w, along_h, back_h, back_w = transform_matrices(height, width, CPU)
    columns = width // 2 + 1
    # Rows of (real, imaginary), then the pairs of a column on one axis.
    rows = (along_w @ x.T).reshape(2, columns, height).permute(2, 0, 1)
    spectrum = (along_h @ rows.reshape(2 * height, columns)).reshape(height, 2, columns)
    expected = torch.view_as_real(torch.fft.rfft2(x, norm="ortho")).permute(0, 2, 1)
    torch.testing.assert_close(spectrum, expected, rtol=0, atol=1e-12)
    rows = (back_h @ spectrum.reshape(2 * height, columns)).reshape(height, 2 * columns)
    torch.testing.assert_close(rows @ back_w.T, x, rtol=0, atol=1e-12)


@given(st.integers(1, 12), sides, st.booleans())
def test_stretching_is_torchs_bicubic_interpolation(length, size, align_corners):
    unit = torch.eye(length, dtype=torch.float64)[None, :, :, None]
    expected = F.interpolate(unit, size=(size, 1), mode="bicubic", align_corners=align_corners)[0, :, :, 0].T
    matrix = stretch_matrix(length, size, CPU, align_corners=align_corners)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-9)


@given(st.integers(1, 12), sides)
def test_crop_pad_moves_each_position_by_its_signed_shift(length, size):
    matrix = crop_pad_matrix(length, size, CPU) * (length / size) ** 0.5
    expected = torch.zeros(size, length, dtype=torch.float64)
    for position in range(length):
        for shift in {position, position - length}:
            if 2 * abs(shift) <= length and 2 * abs(shift) <= size:
                expected[shift % size, position] += 0.5 if 2 * abs(shift) == length else 1
    torch.testing.assert_close(matrix, expected)


class Filters(torch.nn.Module):
    """Both filters and a position embedding, on whatever grid arrives."""

    native = (6, 5)

    def __init__(self, resample):
        super().__init__()
        self.resample = resample
        for name, shape in {"weight": (6, 3, 4, 2), "bank": (6, 3, 2, 2), "position": (1, 6, 5, 4)}.items():
            self.register_buffer(name, torch.randn(shape, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        grid = (x.shape[1], x.shape[2])
        weight, bank = (fit_filter(w, grid, self.native, self.resample) for w in (self.weight, self.bank))
        routing = x.mean(dim=(1, 2)).unsqueeze(1).expand(-1, 2, -1)
        return dynamic_filter(global_filter(x, weight), bank, routing) + stretch_position(self.position, grid)


@pytest.fixture(scope="module", params=["stretch", "crop-pad"])
def at_any_size(request):
    filters = Filters(request.param)
    free = torch.export.Dim.DYNAMIC
    with symbolic_shapes.patch(backed_size_oblivious=True):
        program = torch.export.export(
            filters, (torch.zeros(2, 9, 7, 4),), dynamic_shapes=({0: free, 1: free, 2: free},)
        )
    program._guards_code = []
    return filters, program.module()


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24))
def test_one_graph_is_right_at_every_size(at_any_size, batch, height, width):
    filters, exported = at_any_size
    x = torch.randn(batch, height, width, 4, generator=torch.Generator().manual_seed(2))
    with use_lowering("fft"):
        expected = filters(x)
    torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)


def test_the_graph_holds_no_complex_number_and_no_operator_of_ours(at_any_size):
    targets = [str(node.target) for node in at_any_size[1].graph.nodes]
    assert not [target for target in targets if "freqformer" in target or "fft" in target or "complex" in target]


def test_bfloat16_with_one_side_a_symbol():
    """Constants made in the graph have another scale than those that are cached."""

    class Filter(torch.nn.Module):
        def forward(self, x, weight):
            return global_filter(x, weight, lowering="dft")

    x, weight = torch.randn(2, 14, 10, 3).bfloat16(), torch.randn(14, 6, 3, 2)
    sides = ({1: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO})
    program = torch.export.export(Filter(), (x, weight), dynamic_shapes=sides)
    expected = global_filter(x, weight, lowering="reference")
    assert (program.module()(x, weight) - expected).norm() < 2e-2 * expected.norm()
