"""The state of one generation: what has been read so far, as keys and values of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from backends.base import Observer, Progress
from ops.errors import ContextFullError, OptionError, TokenError

from .checks import whole_number
from .executor import Executor, telling
from .kv_cache import cache_bytes

if TYPE_CHECKING:
    from .model import Model

FIRST_PLACES = 256  # of a KV cache that grows; when full, by as many, or by a quarter if that is more, up to n_ctx


class Context:
    """Made by `Model.context()`. Several contexts share one model; one context is used by one thread at a time."""

    def __init__(self, model: Model, *, n_ctx: int | None = None, n_batch: int | None = None) -> None:
        """n_ctx: places; n_batch: tokens of a prompt that are computed at once; None for the model's own.

        BackendError: a device has too little memory left for it; then none of it was taken.
        """
        self.model = model
        self.n_ctx = model.n_ctx if n_ctx is None else whole_number("n_ctx", n_ctx, 1)
        self.n_batch = model.n_batch if n_batch is None else whole_number("n_batch", n_batch, 1)
        model.file.check()  # norms are read here
        self.tokens: list[int] = []  # what the cache holds
        demand = replace(model.demand, n_ctx=self.n_ctx, n_batch=self.n_batch)
        demand.check_room(model.placement, "a context", weights_are_there=model.is_placed)
        self._places = min(FIRST_PLACES, self.n_ctx)
        self._caches = {}
        for name, (i, shape) in model.caches().items():
            backend = model.placement.layers[i]
            places = self._places if backend.kv_grows else self.n_ctx
            with telling(backend, "when memory for the KV cache was taken"):
                self._caches[name] = backend.allocate((places, *shape), model.cache_dtypes[name])
        self.warm_up_seconds = 0.0
        self._executor = Executor(model.graph, model.placement, {**model.leaves, **self._caches}, demand.sizes)

    @property
    def n_past(self) -> int:
        """Tokens read so far."""
        return len(self.tokens)

    def rewind(self, n: int) -> None:
        """Forget what came after the first n tokens, so that n_past = n; 0 <= n <= n_past, or OptionError."""
        n = whole_number("the place to rewind to", n, 0, self.n_past)
        del self.tokens[n:]

    def eval(
        self,
        tokens: Sequence[int],
        logits: Literal["last", "all"] = "last",
        *,
        observe: Observer | None = None,
        progress: Callable[[int], object] = lambda n_read: None,
    ) -> NDArray[np.float32]:
        """Read more tokens. Logits of the last, float32[n_vocab], or of all of them, float32[n_tokens, n_vocab].

        observe: called after each op; progress: called after each batch with the number of tokens in it.

        TokenError: no tokens, or an id that is not of the vocabulary; ContextFullError: no room for them. Then, and when
        interrupted, the context is as it was before.
        """
        if not isinstance(logits, str) or logits not in ("last", "all"):
            raise OptionError(f"logits = {logits!r}: expected 'last' or 'all'")
        parts = [made for (made,) in self._read(tokens, observe, progress, every=logits == "all")]
        return np.concatenate(parts) if logits == "all" else parts[-1][-1].copy()

    def eval_top(
        self,
        tokens: Sequence[int],
        k: int,
        *,
        observe: Observer | None = None,
        progress: Callable[[int], object] = lambda n_read: None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `eval`, but only the k largest logits of the last token, float32[k], and whose they are, token ids int64[k].

        The largest comes first, of equal ones the lower id; NaN counts as the largest. A device finds them where the logits
        are, so that the whole vocabulary need not be brought to the host and searched there.

        Errors as those of `eval`; OptionError: k is not between 1 and n_vocab.
        """
        k = whole_number("k", k, 1, self.model.config.n_vocab)
        values, ids = self._read(tokens, observe, progress, top=k)[-1]
        return values[0].copy(), ids[0].astype(np.int64)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the KV cache takes now; `Model.kv_bytes(n_ctx)` tells what it may grow to."""
        places = {name: cache.shape[0] for name, cache in self._caches.items()}
        shapes, dtypes = self.model.caches(), self.model.cache_dtypes
        return sum(n * places[name] for name, n in cache_bytes(shapes, dtypes, 1).items())

    def warm_up(self, progress: Progress = lambda items, told: items) -> None:
        """Do now what the first step would do once: bring weights into the form they are computed in, compile kernels.

        progress: wraps a list, as tqdm does, and is told what is done with its items.
        """
        began = perf_counter()
        self._executor.warm_up(lambda items, told: self._checking(progress(items, told)))
        self.model.is_placed = True
        self.warm_up_seconds += perf_counter() - began

    def _checking(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.model.file.check()  # to touch what a file has lost would kill the process
            yield item

    def _read(
        self,
        tokens: Sequence[int],
        observe: Observer | None,
        progress: Callable[[int], object],
        *,
        every: bool = False,
        top: int = 0,
    ) -> list[list[NDArray[Any]]]:
        """For each batch what its step hands back: logits of its last token or of every one, or the `top` largest."""
        ids = self._checked(tokens)
        before, made = self.n_past, []
        self.model.file.check()
        self._make_room(before + len(ids))  # for all of them at once
        try:
            for start in range(0, len(ids), self.n_batch):
                batch = ids[start : start + self.n_batch]
                out_ids = np.arange(len(batch)) if every else np.array([len(batch) - 1])
                made.append(self._step(batch, out_ids, observe, top))
                self.tokens += batch.tolist()
                progress(len(batch))
        except BaseException:
            del self.tokens[before:]
            raise
        return made

    def _step(
        self, batch: NDArray[np.int64], out_ids: NDArray[np.int64], observe: Observer | None, top: int
    ) -> list[NDArray[Any]]:
        self.model.file.check()
        positions = np.arange(self.n_past, self.n_past + len(batch))
        made = self._executor.step({"tokens": batch, "positions": positions, "out_ids": out_ids}, observe, top=top)
        self.model.is_placed = True
        return made

    def _make_room(self, n: int) -> None:
        if n <= self._places:
            return
        places = min(max(self._places * 5 // 4, n, self._places + FIRST_PLACES), self.n_ctx)
        for name, (i, _) in self.model.caches().items():
            if self._caches[name].shape[0] < places:  # one at a time, so that no two whole caches are in memory
                backend = self.model.placement.layers[i]
                with telling(backend, "when its KV cache grew"):
                    larger = backend.enlarge(self._caches[name], places)
                self._executor.rebind(name, larger)  # first: if Ctrl-C comes between, the next step does both again
                self._caches[name] = larger
        self._places = places

    def _checked(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        try:
            ids = np.asarray(tokens)
        except ValueError:  # rows of different lengths
            ids = np.array(None)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise TokenError(f"expected a list of token ids, got {str(tokens)[:60]!r}")
        if len(ids) == 0:
            raise TokenError("nothing to evaluate: give at least one token id")
        n_vocab = self.model.config.n_vocab
        wrong = ids[(ids < 0) | (ids >= n_vocab)]
        if len(wrong):
            raise TokenError(f"token id {wrong[0]} is not in the vocabulary (0 to {n_vocab - 1})")
        if self.n_past + len(ids) > self.n_ctx:
            raise ContextFullError(
                f"{len(ids)} more tokens do not fit: the context holds {self.n_past} of n_ctx = {self.n_ctx}"
                "; a longer context is set by n_ctx, -c on the command line"
            )
        return ids.astype(np.int64)
