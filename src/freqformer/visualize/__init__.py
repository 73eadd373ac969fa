"""What a model has learned and what it looks at, as matplotlib figures."""

from .frequencies import band_pass, radius

__all__ = ["band_pass", "radius"]
