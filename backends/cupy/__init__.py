"""The CUDA backend, through CuPy. Importing it needs neither CuPy nor a GPU; making a CuPy() does."""

from .backend import CuPy

__all__ = ["CuPy"]
