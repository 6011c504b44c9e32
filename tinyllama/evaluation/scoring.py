"""Log-probabilities of continuations: sequences one after the other in one context, read from where they begin to differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .perplexity import log_softmax_at

if TYPE_CHECKING:
    from ..context import Context

ROWS = 128  # of logits at a time: a row has as many numbers as the vocabulary has tokens


class Scorer:
    """Give it sequences in sorted order, and every beginning that some of them share is computed once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        context.rewind(0)
        self._last: NDArray[np.float32] | None = None  # logits after the context's last tokens, as many as there are rows

    def score(self, tokens: list[int], n: int) -> tuple[float, bool]:
        """log p of the last n tokens, given all before them; and whether each was the likeliest. len(tokens) > n > 0"""
        first = len(tokens) - n - 1  # the place whose logits predict the first of the n
        logits, total, greedy = self._known(tokens, first), 0.0, True
        place = first
        while place < len(tokens) - 1:
            if logits is None or not len(logits):
                end = min(place + ROWS, len(tokens) - 1)
                logits = self._context.eval(tokens[place:end], logits="all")
                self._last = logits
            targets = np.asarray(tokens[place + 1 : place + 1 + len(logits)])
            total += float(log_softmax_at(logits, targets).sum())
            greedy = greedy and bool((logits.argmax(axis=-1) == targets).all())
            place, logits = place + len(logits), None
        return total, greedy

    def _known(self, tokens: list[int], first: int) -> NDArray[np.float32] | None:
        """Go to where the sequence leaves the context's; the rows of logits from `first` on that are still known."""
        held = self._context.tokens
        shared = 0
        while shared < min(len(held), len(tokens) - 1) and held[shared] == tokens[shared]:
            shared += 1
        oldest = len(held) - (0 if self._last is None else len(self._last))  # the place of the first row in _last
        if oldest <= first < shared and self._last is not None:
            known = self._last[first - oldest : shared - oldest]
            self._last = self._last[: shared - oldest]
            self._context.rewind(shared)
            return known
        self._context.rewind(min(shared, first))
        self._last = None
        if self._context.n_past < first:
            self._context.eval(tokens[self._context.n_past : first])
        return None
