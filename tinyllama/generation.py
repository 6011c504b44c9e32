"""From a prompt to text: prefill, then one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from backends.base import Observer
from ops.errors import ContextFullError, OptionError, TokenError

from .checks import whole_number
from .sampling import Sampler, Sampling
from .tokenizer import StreamDecoder

if TYPE_CHECKING:
    from .context import Context

MOST = 128  # logits that are sought where they lie; to sort more of them takes longer than to bring all of them here

Seen = tuple[NDArray[np.float32]] | tuple[NDArray[np.float32], NDArray[np.int64]]  # all logits; the largest, and whose they are
StopReason = Literal["end", "length", "context", "stop", "interrupted"]


@dataclass
class Timings:
    """Seconds and tokens of the two phases; a token's generation is its sampling and the step after it."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0


class Generation:
    """An iterator of text pieces. Afterwards:

    tokens: the ids generated (without the one that ended it); timings; and stop_reason, one of
    "end" (the model said so), "length" (n_predict reached), "stop" (a stop text), "context" (n_ctx reached),
    "interrupted" (an exception, such as KeyboardInterrupt, came in between); None while it runs.
    """

    def __init__(
        self,
        context: Context,
        prompt: Sequence[int],
        *,
        n_predict: int = 128,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        observe: Observer | None = None,
        progress: Callable[[int], object] = lambda n_read: None,
    ) -> None:
        n_predict = whole_number("n_predict", n_predict, -1)
        if not prompt:
            raise TokenError("the prompt is empty: give at least one token to continue from")
        if len(prompt) > context.n_ctx:
            raise ContextFullError(
                f"the prompt has {len(prompt)} tokens, more than n_ctx = {context.n_ctx}: shorten it, or set n_ctx (-c) higher"
            )
        self.context = context
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.timings = Timings()
        self.stop_reason: StopReason | None = None
        self.sampler = Sampler(sampling or Sampling(), context.model.config.n_vocab)
        self._n_predict = n_predict
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, (list, tuple)) or not all(isinstance(text, str) for text in stops):
            raise OptionError(f"stop = {stop!r}: expected a text or a list of texts")
        self._stop = [text for text in stops if text]
        self._ignore_eos = ignore_eos
        self._observe = observe
        self._progress = progress
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def _run(self) -> Iterator[str]:
        decoder = StreamDecoder(self.context.model.tokenizer)
        text = ""  # decoded, but held back: a stop text may have begun in it
        try:
            for token in self._new_tokens():
                text += decoder.feed(token)
                text, found = self._before_stop(text)
                if found:
                    self.stop_reason = "stop"
                    break
                keep = self._may_begin_stop(text)
                if piece := text[: len(text) - keep]:
                    yield piece
                text = text[len(text) - keep :]
            if self.stop_reason != "stop":
                text, _ = self._before_stop(text + decoder.flush())
            if text:
                yield text
        finally:
            self.stop_reason = self.stop_reason or "interrupted"

    def _new_tokens(self) -> Iterator[int]:
        tokenizer, context = self.context.model.tokenizer, self.context
        seen = self._prefill()
        while self._n_predict < 0 or len(self.tokens) < self._n_predict:
            began = perf_counter()
            token = self.sampler.sample(*seen)
            if not self._ignore_eos and tokenizer.is_end(token):
                self.stop_reason = "end"
                return
            self.sampler.accept(token)
            self.tokens.append(token)
            self.timings.generated_tokens += 1
            self.timings.generation_seconds += perf_counter() - began
            yield token
            if len(self.tokens) == self._n_predict:
                break  # what follows this token is not asked for
            if context.n_past == context.n_ctx:
                self.stop_reason = "context"
                return
            began = perf_counter()
            seen = self._eval([token])
            self.timings.generation_seconds += perf_counter() - began
        self.stop_reason = "length"

    def _prefill(self) -> Seen:
        context, began = self.context, perf_counter()
        known = 0  # tokens of the prompt that the context holds; the last one is read anyway, for its logits
        for held, asked in zip(context.tokens, self.prompt[:-1], strict=False):
            if held != asked:
                break
            known += 1
        context.rewind(known)
        for token in self.prompt:
            self.sampler.accept(token)
        try:
            return self._eval(self.prompt[known:], self._progress)
        finally:  # also when it is interrupted
            self.timings.prompt_tokens = len(self.prompt) - known
            self.timings.prompt_seconds = perf_counter() - began

    def _eval(self, tokens: Sequence[int], progress: Callable[[int], object] = lambda n_read: None) -> Seen:
        if 0 < (k := self.sampler.n_largest) <= MOST:
            return self.context.eval_top(tokens, k, observe=self._observe, progress=progress)
        return (self.context.eval(tokens, observe=self._observe, progress=progress),)

    def _before_stop(self, text: str) -> tuple[str, bool]:
        """The text before the first stop text in it, and whether there is one."""
        places = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _may_begin_stop(self, text: str) -> int:
        """Characters at the end of `text` that are the beginning of a stop text."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stop):
                return n
        return 0
