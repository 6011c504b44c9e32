"""The OpenCL backend. Importing it needs no pyopencl; making an OpenCL() does."""

from .backend import OpenCL

__all__ = ["OpenCL"]
