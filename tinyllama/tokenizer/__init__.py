"""Text to token ids and back, by the vocabulary that a model file carries."""
from __future__ import annotations

from tinyllama.tokenizer.streaming import StreamDecoder
from tinyllama.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
