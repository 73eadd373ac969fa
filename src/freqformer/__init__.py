"""Frequency-domain vision models for PyTorch."""

__version__ = "0.1.0"
