"""The person at the other end: lines that are typed, or come through a pipe."""

from __future__ import annotations

import contextlib
import sys

from .arguments import note
from .text import option_error


def at_terminal() -> bool:
    """Whether somebody sees the prompt and types the answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def editable() -> None:
    """Where there is readline, a line can be edited from now on, and has a history."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def ask(prompt: str) -> str | None:
    """A line of stdin, None at its end; the prompt is shown at a terminal only. Ctrl-C goes to the caller.

    OptionError: the line is no UTF-8.
    """
    try:
        return input(prompt if at_terminal() else "")
    except (EOFError, KeyboardInterrupt) as end:
        if at_terminal():
            note()  # leaves the line of the prompt
        if isinstance(end, KeyboardInterrupt):
            raise
        return None
    except UnicodeDecodeError as error:
        raise option_error(f"stdin is not valid UTF-8: byte {error.object[error.start]:#04x}") from None
