"""A bar for what takes long, on a terminal only."""

from __future__ import annotations

from ..model import Model


def warm_up(model: Model) -> None:
    """Prepare the model's weights, with a bar if it takes more than half a second."""
    from tqdm import tqdm

    model.warm_up(lambda weights: tqdm(weights, "preparing weights", disable=None, delay=0.5, leave=False, unit=""))
