"""Frequency adapters for any sequence of transformer blocks, and the encoders that they are attached to."""
