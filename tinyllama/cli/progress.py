"""A bar for what takes long, on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..context import Context


def warm_up(context: Context) -> None:
    """Prepare the model's weights, with a bar if it takes more than half a second."""
    from tqdm import tqdm

    context.warm_up(lambda weights: tqdm(weights, "preparing weights", disable=None, delay=0.5, leave=False, unit=""))
