"""The numpy backend: the reference's formulas, made fast."""

from .backend import Numpy

__all__ = ["Numpy"]
