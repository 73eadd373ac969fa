"""Pictures of noise, and networks whose blocks do known things."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from freqformer.factory import create_model
from freqformer.layers import Block


class Known(Block):
    """A block that does one known thing with a grid."""

    def __init__(self, function):
        nn.Module.__init__(self)
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture(scope="session")
def photo():
    """``photo(height=32, width=32, seed=0)``: an image of noise."""

    def make(height=32, width=32, seed=0):
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="session")
def network_of():
    """``network_of(*functions)``: freqformer_n, patches of 4 pixels on a grid of 8x8, with these for blocks."""

    def make(*functions):
        torch.manual_seed(0)
        model = create_model("freqformer_n").eval()
        model.stages[0].blocks = nn.Sequential(*map(Known, functions))
        return model

    return make
