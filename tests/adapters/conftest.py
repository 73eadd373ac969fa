"""What the tests of the adapters share: small networks and ways to move what was attached to them."""

from zlib import crc32

import pytest
import timm
import torch

import freqformer.models  # noqa: F401  (registers this package's networks with timm)

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 64, "num_classes": 5}


def _stir(model):
    """Values that follow from names and shapes alone, and no zeros, so that nothing hides behind them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(crc32(name.encode()))
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2 and not name.endswith("bias"):
                parameter.add_(0.1 * values)  # to a constant
            else:
                parameter.copy_(values * (0.1 if parameter.ndim < 2 else values[0].numel() ** -0.5))
    return model


@pytest.fixture
def small():
    """Make a small network in float64 and in evaluation mode: ``small("vit_base_patch16_224", reg_tokens=2)``."""

    def make(name="vit_base_patch16_224", dtype=torch.float64, **options):
        own = {"num_classes": 5} if name.startswith("test_") else SMALL
        return _stir(timm.create_model(name, **{**own, **options})).to(dtype).eval()

    return make


@pytest.fixture
def images():
    """Random images for a network, (2, channels, height, width)."""
    from freqformer.adapters.backbone import blank_image

    def make(model, size=None):
        blank = blank_image(model)
        shape = (2, blank.shape[1], *(size or blank.shape[2:]))
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(blank)

    return make


@pytest.fixture
def move():
    """Move everything that a handle trains away from where it began."""

    def run(handle, by=0.05, seed=2):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in handle.parameters():
                parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter))
        return handle

    return run
