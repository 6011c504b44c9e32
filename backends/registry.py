"""Backends by name: ours, those of installed packages (entry point group `tinyllama.backends`), `module:Class`, or `auto`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec

from ops.errors import BackendError, TinyLlamaError

from .base import Backend, Options

GROUP = "tinyllama.backends"
OURS = {
    "numpy": "backends.numpy:Numpy",
    "opencl": "backends.opencl:OpenCL",
    "cupy": "backends.cupy:CuPy",
    "reference": "backends.base:Backend",
}
AUTO = "auto"
# What `auto` tries before numpy, the fastest first: backend, the package without which it is not imported, what is told then
FASTER = (
    ("cupy", "cupy", "not installed"),
    ("opencl", "pyopencl", 'not installed: pip install "tinyllama[opencl]"'),
)


def known_backends() -> dict[str, str]:
    """name -> module:Class of every backend that can be named here."""
    return {**OURS, **{e.name: e.value for e in entry_points(group=GROUP)}}


def get_backend(name: str, options: Options | None = None) -> Backend:
    """The backend of that name, ready to use. BackendError if it is unknown, cannot be imported or is no backend."""
    if name == AUTO:
        return fastest(options).backend
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


@dataclass(frozen=True)
class Choice:
    """The backend that `auto` took."""

    backend: Backend
    passed_over: str  # why each faster one cannot be used: "cupy: not installed; opencl: no OpenCL device was found: ..."

    @property
    def told(self) -> str:
        """`auto took opencl; cupy: not installed`"""
        return "; ".join(filter(None, [f"{AUTO} took {self.backend.name}", self.passed_over]))


def fastest(options: Options | None = None) -> Choice:
    """cupy on an NVIDIA GPU, else opencl on its first device (GPUs before CPUs), else numpy; made with these options.

    A backend that cannot be made, for want of a driver or of the device that the options name, is passed over. Those of other
    packages are not tried: they run when they are named.
    """
    passed_over: list[str] = []
    for name, package, missing in FASTER:
        if find_spec(package) is None:
            passed_over.append(f"{name}: {missing}")
            continue
        try:
            return Choice(get_backend(name, options), "; ".join(passed_over))
        except TinyLlamaError as error:
            why = str(error).removeprefix(f"backend '{name}' ")
            passed_over.append(f"{name}: {why}")
    return Choice(get_backend("numpy", options), "; ".join(passed_over))


def _told(error: Exception) -> str:
    """An error of someone else's in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
