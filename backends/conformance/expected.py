"""What a backend that is still growing is excused from: files of patterns, for checks to skip and checks that may fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from ops.errors import OptionError

from .check import Check


def read_patterns(path: str | Path, checks: Mapping[str, Check]) -> dict[str, str]:
    """name of a check -> why, for all checks that a line of the file names.

    A line holds the name of a check (`op-matmul-Q4_0`, or as pytest prints it, `test_check[op-matmul-Q4_0]`), or an op and
    a dtype (`matmul:Q4_0`); both may be globs (`matmul:*_K`). What follows a # is a comment, and told as the reason.
    OptionError: the file cannot be read, or a line names nothing.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OptionError(f"cannot read {path}: {told}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        pattern, _, comment = (part.strip() for part in line.partition("#"))
        if not pattern:
            continue
        names = [check.name for check in checks.values() if matches(check, pattern)]
        if not names:
            raise OptionError(f"{path}, line {number}: '{pattern}' is no check: give a name such as op-silu-f32, or op:dtype")
        found |= dict.fromkeys(names, comment or f"{path}, line {number}")
    return found


def matches(check: Check, pattern: str) -> bool:
    """Does this pattern of a file mean this check?"""
    if in_brackets := re.search(r"test_check\[(.*)\]$", pattern):
        pattern = in_brackets[1]
    if ":" in pattern:
        return bool(check.dtype) and any(fnmatchcase(f"{op}:{check.dtype}", pattern) for op in check.ops)
    return fnmatchcase(check.name, pattern)
