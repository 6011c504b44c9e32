"""Arguments of the public API, checked before anything is done with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ops.errors import OptionError


def truth(name: str, value: Any) -> None:
    """OptionError: neither True nor False (a text such as "no" would count as True)."""
    if not isinstance(value, (bool, np.bool_)):
        raise OptionError(f"{name} = {value!r}: it must be True or False")


def whole_number(name: str, value: Any, low: int, high: float = float("inf")) -> int:
    """The value as an int. OptionError: no whole number (True and 2.0 are none), or outside low..high."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        upper = "" if high == float("inf") else f" and at most {high}"
        raise OptionError(f"{name} = {value!r} is out of range: it must be a whole number of at least {low}{upper}")
    return int(value)
