"""Which checks to run: pytest's -k, for the command."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ops.errors import OptionError

from .check import Check


def selected(checks: Mapping[str, Check], expression: str | None) -> dict[str, Check]:
    """The checks whose names contain these words, put together with and, or, not: `matmul and not K`, without regard to case.

    OptionError: the expression cannot be read, or nothing fits it.
    """
    found = {name: check for name, check in checks.items() if expression is None or is_meant(name, expression)}
    if not found:
        raise OptionError(f"-k '{expression}' fits no check: names are {', '.join(list(checks)[:3])}, ...")
    return found


def is_meant(name: str, expression: str) -> bool:
    """Does this name fit the expression?"""

    def truth(word: re.Match[str]) -> str:
        return word[0] if word[0] in ("and", "or", "not") else str(word[0].lower() in name.lower())

    try:
        return bool(eval(re.sub(r"[^\s()]+", truth, expression), {}))  # only True, False, and, or, not and brackets are left
    except (SyntaxError, TypeError):
        raise OptionError(f"-k '{expression}' cannot be read: give words, with and, or, not between them") from None
