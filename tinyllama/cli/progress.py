"""A bar for what takes long, on a terminal only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .arguments import note

if TYPE_CHECKING:
    from ..context import Context
    from ..evaluation import Estimate

COMPILING = "compiling kernels"  # what plans of devices say that they do
FROM_CACHE = 2.0  # seconds: more than kernels take that were compiled before


def warm_up(context: Context) -> None:
    """Prepare weights and kernels, with a bar for what takes long; where there is no terminal, with a line for kernels."""
    from tqdm import tqdm

    def progress(items: list[Any], told: str) -> Iterable[Any]:
        if told == COMPILING and not sys.stderr.isatty():
            return _told_if_long(items)
        bar: Iterable[Any] = tqdm(items, told, disable=None, delay=0.5, leave=False, unit="", **_size())
        return bar

    context.warm_up(progress)


def _told_if_long(items: list[Any]) -> Iterator[Any]:
    """Items that usually come from a cache at once; if they do not, a line says what is going on."""
    began, silent = perf_counter(), True
    for item in items:
        if silent and perf_counter() - began > FROM_CACHE:
            note(f"{COMPILING}: {len(items)}, once for this device; they are kept ...")
            silent = False
        yield item


def _size() -> dict[str, int]:
    """80 x 24 for a terminal that says it has no columns, as some do; else tqdm asks by itself."""
    try:
        return {} if os.get_terminal_size(sys.stderr.fileno()).columns else {"ncols": 80, "nrows": 24}
    except (OSError, ValueError):
        return {}


def prompt_bar(n_tokens: int) -> Callable[[int], object]:
    """A bar for a prompt that takes more than a second to read; call it with the number of tokens read, as they are."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None

    def read(n: int) -> None:
        nonlocal bar  # begun with the first batch: other work may come between this and the prompt
        bar = bar or tqdm(total=n_tokens, desc="reading the prompt", disable=None, delay=1, leave=False, unit="")
        bar.update(n)
        if bar.n >= n_tokens:
            bar.close()

    return read


@contextmanager
def file_bar(told: str) -> Iterator[Callable[[int, int], object]]:
    """A bar for a file that is being written; call what it gives with the bytes written, and how many it will have."""
    from tqdm import tqdm

    with tqdm(desc=told, total=0, disable=None, delay=0.5, leave=False, unit="B", unit_scale=True, **_size()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def estimate_bar(estimates: Iterable[Estimate]) -> Iterator[Estimate]:
    """A bar for a perplexity, a step for each window of the text, with the estimate so far."""
    from tqdm import tqdm

    with tqdm(desc="reading the text", disable=None, leave=False, unit="window", **_size()) as bar:
        for estimate in estimates:
            bar.total = estimate.n_windows
            bar.set_postfix_str(f"PPL = {estimate.perplexity:.4f}", refresh=False)
            bar.update()
            yield estimate
