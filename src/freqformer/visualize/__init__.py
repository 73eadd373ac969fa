"""What a model has learned and what it looks at, as matplotlib figures."""

from .attention import attention
from .bands import agreement, bands
from .frequencies import band_pass, radius
from .learned import LearnedFilter, learned_filters
from .loading import load_network
from .mixing import mixtures
from .response import response
from .sheet import filters
from .spectrum import spectrum

__all__ = [
    "LearnedFilter",
    "agreement",
    "attention",
    "band_pass",
    "bands",
    "filters",
    "learned_filters",
    "load_network",
    "mixtures",
    "radius",
    "response",
    "spectrum",
]
