"""A bar for what takes long, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..context import Context


def warm_up(context: Context) -> None:
    """Prepare weights and kernels, with a bar for what takes more than half a second."""
    from tqdm import tqdm

    context.warm_up(lambda items, told: tqdm(items, told, disable=None, delay=0.5, leave=False, unit=""))


def prompt_bar(n_tokens: int) -> Callable[[int], object]:
    """A bar for a prompt that takes more than a second to read; call it with the number of tokens read, as they are."""
    from tqdm import tqdm

    bar = tqdm(total=n_tokens, desc="reading the prompt", disable=None, delay=1, leave=False, unit="")

    def read(n: int) -> None:
        bar.update(n)
        if bar.n >= n_tokens:
            bar.close()

    return read
