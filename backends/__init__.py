"""tinyllama's backends: how operations are computed, and where."""

from .base import Backend, Event, Observer, Options, Plan, kernel
from .registry import get_backend, known_backends

__all__ = ["Backend", "Event", "Observer", "Options", "Plan", "get_backend", "kernel", "known_backends"]
