"""tinyllama's backends: how operations are computed, and where."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Backend", "Event", "Observer", "Options", "Plan", "get_backend", "kernel", "known_backends"]

if TYPE_CHECKING:
    from .base import Backend, Event, Observer, Options, Plan, kernel
    from .registry import get_backend, known_backends


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: pytest loads the kit's plugin from here, in suites that never use it."""
    if name not in __all__:
        raise AttributeError(f"module 'backends' has no attribute '{name}'")
    home = "registry" if name in ("get_backend", "known_backends") else "base"
    return getattr(importlib.import_module(f".{home}", __name__), name)
