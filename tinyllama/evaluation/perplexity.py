"""Perplexity: how many tokens a model hesitates between, on average, at every token of a text.

    exp(-mean of log p(token | what came before it in its window))

llama.cpp's definition, so that figures can be compared: the text's tokens are cut into windows of n_ctx, each read with
nothing before it, its first token replaced by the vocabulary's beginning (bos) if the model is used to one. Only the tokens
of the second half are scored, which have at least n_ctx / 2 tokens before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ops.errors import OptionError

from ..checks import whole_number

if TYPE_CHECKING:
    from ..model import Model

SMALLEST = 4  # places of a window: two of them make a half, of which one is scored


@dataclass(frozen=True)
class Estimate:
    """After some windows of a text."""

    n_done: int  # windows
    n_windows: int  # in all
    n_scored: int  # tokens
    mean: float  # of -log p, in nats
    variance: float  # of -log p

    @property
    def perplexity(self) -> float:
        try:
            return exp(self.mean)
        except OverflowError:  # beyond 709 nats a token: a damaged model's
            return inf

    @property
    def error(self) -> float:
        """Standard error of the perplexity, as if tokens were drawn independently."""
        relative = sqrt(self.variance / max(self.n_scored - 1, 1))
        return self.perplexity * relative if relative else 0.0


def perplexity(model: Model, text: str, *, n_ctx: int = 512, n_windows: int | None = None) -> Iterator[Estimate]:
    """The estimate after each window of n_ctx tokens; the last one is the text's.

    n_windows: stop after so many, None for all of the text.

    OptionError: the text has fewer than two windows, or n_ctx is no length for one.
    """
    tokens = model.tokenize(text, parse_special=False)  # it is a text about <s>, not a prompt with one
    return perplexity_of_tokens(model, tokens, n_ctx=n_ctx, n_windows=n_windows)


def perplexity_of_tokens(
    model: Model, tokens: Sequence[int], *, n_ctx: int = 512, n_windows: int | None = None
) -> Iterator[Estimate]:
    """As `perplexity`, of token ids."""
    n_ctx = whole_number("n_ctx", n_ctx, SMALLEST)
    found = len(tokens) // n_ctx
    if found < 2:  # as llama.cpp asks: one window would say little
        raise OptionError(
            f"the text has {len(tokens)} tokens, but two windows of n_ctx = {n_ctx} are needed at least: take a longer "
            "text, or a smaller n_ctx (-c)"
        )
    wanted = found if n_windows is None else min(found, whole_number("the number of windows", n_windows, 1))
    return _estimates(model, np.asarray(tokens[: wanted * n_ctx]).reshape(wanted, n_ctx))


def _estimates(model: Model, windows: NDArray[np.int64]) -> Iterator[Estimate]:
    n_windows, n_ctx = windows.shape
    bos = model.tokenizer.bos if model.tokenizer.adds_bos else None
    context = model.context(n_ctx=n_ctx)
    n, total, squares = 0, 0.0, 0.0
    for done, window in enumerate(windows, start=1):
        inputs = window.copy()
        if bos is not None:
            inputs[0] = bos
        context.rewind(0)
        half = n_ctx // 2
        context.eval(inputs[:half].tolist())
        logits = context.eval(inputs[half:-1].tolist(), logits="all")  # the last token has no successor to predict
        surprise = -log_softmax_at(logits, window[half + 1 :])
        n, total, squares = n + len(surprise), total + float(surprise.sum()), squares + float((surprise**2).sum())
        mean = total / n
        yield Estimate(done, n_windows, n, mean, max(squares / n - mean * mean, 0.0))


def log_softmax_at(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """log p of tokens[t] under the softmax of row t: logits float32[T, n_vocab], tokens int[T] -> float64[T]"""
    top = logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[:, None], axis=-1) - top
    total = np.exp(logits - top).sum(axis=-1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float64] = (chosen - np.log(total))[:, 0]
    return result
