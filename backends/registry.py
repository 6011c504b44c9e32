"""Backends by name: those of installed packages (entry point group `tinyllama.backends`), or `module:Class`."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from ops.errors import BackendError, TinyLlamaError

from .base import Backend, Options

GROUP = "tinyllama.backends"
OURS = {
    "numpy": "backends.numpy:Numpy",
    "opencl": "backends.opencl:OpenCL",
    "cupy": "backends.cupy:CuPy",
    "reference": "backends.base:Backend",
}


def known_backends() -> dict[str, str]:
    """name -> module:Class of every backend that can be named here."""
    return {**OURS, **{e.name: e.value for e in entry_points(group=GROUP)}}


def get_backend(name: str, options: Options | None = None) -> Backend:
    """The backend of that name, ready to use. BackendError if it is unknown, cannot be imported or is no backend."""
    known = known_backends()
    module, colon, attribute = known.get(name, name).partition(":")
    if not colon or not module or not attribute:
        raise BackendError(f"unknown backend '{name}': known are {', '.join(sorted(known))}, or give module:Class")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a foreign module does when it is imported
        raise BackendError(f"backend '{name}' cannot be loaded from {module}:{attribute}: {_told(error)}") from error
    if not (isinstance(made, type) and issubclass(made, Backend)):
        raise BackendError(f"backend '{name}': {module}:{attribute} is not a subclass of backends.base.Backend")
    try:
        return made(options)
    except TinyLlamaError:
        raise
    except Exception as error:  # a driver's own, when it finds no device
        raise BackendError(f"backend '{name}' cannot be used here: {_told(error)}") from error


def _told(error: Exception) -> str:
    """An error of someone else's in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
