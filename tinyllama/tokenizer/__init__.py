"""Text to token ids and back, by the vocabulary that a model file carries."""

from __future__ import annotations

from .streaming import StreamDecoder
from .tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
