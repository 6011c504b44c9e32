"""What OpenCL and CUDA share, which is nearly everything: kernels, the launch table, buffers, plans."""

from .backend import DeviceBackend

__all__ = ["DeviceBackend"]
