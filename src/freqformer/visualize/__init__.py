"""What a model has learned and what it looks at, as matplotlib figures."""

from .frequencies import band_pass, radius
from .learned import LearnedFilter, learned_filters
from .loading import load_network
from .mixing import mixtures
from .sheet import filters

__all__ = ["LearnedFilter", "band_pass", "filters", "learned_filters", "load_network", "mixtures", "radius"]
