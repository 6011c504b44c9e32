"""One context of the kit's small decoder, and how its model, its tokens and its steps are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import Backend, Event
from .decoder import Decoder
from .trial import Trial

Array = NDArray[Any]
FORMATS_TRIED = ("F32", "Q8_0", "Q4_0", "F16", "Q6_K")


class Session:
    """One context: a plan of its own, caches of its own in float32, and how far it has read."""

    def __init__(self, backend: Backend, decoder: Decoder, places: int) -> None:
        self.backend, self.decoder, self.position = backend, decoder, 0
        caches = {name: backend.allocate((places, decoder.k, decoder.d), np.float32) for name in ("k_cache", "v_cache")}
        self.plan = backend.compile(decoder.graph(), {**decoder.weights(), **caches})

    def read(self, tokens: Array, observe: Callable[[Event], None] | None = None) -> Array:
        """Logits of each of these tokens, float32[T, V]. A step that fails is as if it had not been."""
        inputs = self.inputs(tokens)
        with np.errstate(all="ignore"):
            outputs = self.plan(inputs, observe)
            for array in inputs.values():
                array[...] = 0  # the step is over: the caller may do with its arrays what it wants
            logits = np.array(self.backend.download(outputs[0]))
        self.position += len(tokens)
        return logits

    def inputs(self, tokens: Array) -> dict[str, Array]:
        T = len(tokens)
        return {"tokens": tokens.copy(), "positions": self.position + np.arange(T), "out_ids": np.arange(T)}

    def read_in(self, tokens: Array, lengths: Sequence[int]) -> Array:
        """In steps of these lengths."""
        ends = np.cumsum(lengths)
        return np.concatenate([self.read(tokens[end - length : end]) for end, length in zip(ends, lengths, strict=True)])


def drawn_decoder(trial: Trial, label: str = "") -> Decoder:
    format_name = trial.one_of(f"format{label}", FORMATS_TRIED)
    (h, k), d = trial.one_of(f"h, k{label}", ((1, 1), (2, 1), (3, 1), (4, 2), (6, 2))), trial.one_of(f"d{label}", (64, 8, 96))
    n, ff = (trial.one_of(f"{name}{label}", (32, 64, 96)) for name in ("n", "ff"))
    if format_name == "Q6_K":  # n, ff and h * d are multiples of its block
        n, ff, h, k, d = 256, 256, 4, k, 64
    elif format_name in ("Q8_0", "Q4_0"):
        d = 64
    neox = trial.one_of(f"neox{label}", (False, True))
    return Decoder(n, h, k, d, ff, 33, neox, format_name, trial.one_of(f"weights{label}", range(100)))


def drawn_tokens(trial: Trial, decoder: Decoder, n: int, label: str = "tokens") -> Array:
    return trial.random(label).integers(0, decoder.vocabulary, n)


def cut(trial: Trial, n: int) -> list[int]:
    """n as a sum of lengths."""
    lengths: list[int] = []
    while (left := n - sum(lengths)) > 0:
        lengths.append(min(left, trial.one_of("T", (1, 2, 3, 7, 16, 33, 65))))
    return lengths
