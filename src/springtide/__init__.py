"""Springtide: the layers between a Python web application and its next million users."""

__all__ = ["__version__"]

__version__ = "0.1.0"
