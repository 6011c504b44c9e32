"""Log-probabilities of continuations: sequences one after the other in one context, read from where they begin to differ."""

from __future__ import annotations

from collections.abc import Iterator
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
        self._none = np.empty((0, context.model.config.n_vocab), np.float32)
        self._kept = self._none  # logits after the context's last tokens, as many as there are rows, at most ROWS

    def score(self, tokens: list[int], n: int) -> tuple[float, bool]:
        """log p of the last n tokens, given all before them; and whether each was the likeliest. len(tokens) > n > 0"""
        place = len(tokens) - n - 1  # whose logits predict the first of the n
        total, greedy = 0.0, True
        for logits in self._logits(tokens, place):
            targets = np.asarray(tokens[place + 1 : place + 1 + len(logits)], np.int64)
            total += float(log_softmax_at(logits, targets).sum())
            greedy = greedy and bool((logits.argmax(axis=-1) == targets).all())
            place += len(logits)
        return total, greedy

    def _logits(self, tokens: list[int], first: int) -> Iterator[NDArray[np.float32]]:
        """Rows of logits from place `first` to the last but one: those that are known, then what has to be read."""
        yield self._known(tokens, first)
        while (begin := self._context.n_past) < len(tokens) - 1:
            read = self._context.eval(tokens[begin : min(begin + ROWS, len(tokens) - 1)], logits="all")
            beside = max(0, len(self._kept) + len(read) - ROWS)  # the oldest rows, for which there is no room
            self._kept = np.concatenate([self._kept[beside:], read])
            yield read[max(0, first - begin) :]

    def _known(self, tokens: list[int], first: int) -> NDArray[np.float32]:
        """Go to where the sequence leaves the context's, or to `first`; the rows from `first` to there, if they are kept."""
        held = self._context.tokens
        shared = 0
        while shared < min(len(held), len(tokens) - 1) and held[shared] == tokens[shared]:
            shared += 1
        oldest = len(held) - len(self._kept)  # the place of the first row kept
        if oldest <= first < shared:
            self._kept = self._kept[: shared - oldest]
            self._context.rewind(shared)
            return self._kept[first - oldest :]
        self._kept = self._none
        begin = min(shared, first)
        self._context.rewind(begin)
        if first - begin > ROWS:  # else a few rows more cost less than a step more
            self._context.eval(tokens[begin:first])
        return self._none
