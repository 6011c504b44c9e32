"""Ctrl-C at a chosen moment."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from itertools import count
from types import FrameType, ModuleType
from typing import Any


def interrupted_at(n: int, module: ModuleType, work: Callable[[], object]) -> bool:
    """Do the work, with Ctrl-C before the nth line of it in this module's file, or in contextlib's. Did it get so far?"""
    lines = count()
    came = False

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal came
        if frame.f_code.co_filename not in (module.__file__, contextlib.__file__) or came:
            return None
        if event == "line" and next(lines) == n:
            came = True
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return came
