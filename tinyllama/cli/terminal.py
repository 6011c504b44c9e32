"""A command at a terminal: what goes wrong is told in one sentence, and becomes an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ops.errors import TinyLlamaError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def guarded(command: Callable[[], int], name: str) -> int:
    """Run a command: TinyLlamaError becomes a sentence on stderr, Ctrl-C and a closed stdout end it quietly."""
    if hasattr(sys.stdout, "reconfigure"):  # text of a model has every character; a terminal of another encoding has not
        sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else "strict", **_utf8_unless_terminal())
    try:
        code = command()
        sys.stdout.flush()
        return code
    except TinyLlamaError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return BROKEN_PIPE
    except MemoryError:
        print(f"{name}: out of memory: close other programs, or use a smaller model or -c", file=sys.stderr)
        return 1


def _utf8_unless_terminal() -> dict[str, str]:
    return {} if sys.stdout.isatty() else {"encoding": "utf-8"}
