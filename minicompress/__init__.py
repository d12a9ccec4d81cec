"""Soft prompts learned by compressing a context into a few vectors, by hand in NumPy."""

__version__ = "0.1.0"
