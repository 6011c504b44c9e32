"""A command at a terminal: what goes wrong is told in one sentence, and becomes an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ..printable import printable

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def guarded(command: Callable[[], int], name: str) -> int:
    """Run a command: what a user can cause becomes a sentence on stderr; Ctrl-C, `kill` and a closed pipe end it quietly."""
    _open_streams()
    _unwind_when_killed()
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:
        return _told(name, "out of memory: close other programs, or use a smaller model or -c")
    except OSError as error:
        # what a command reads or writes itself is told by its own error: this is stdout
        closed = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)
        _drop_what_is_buffered()
        return BROKEN_PIPE if closed else _told(name, f"cannot write to stdout: {error.strerror or error}")
    except Exception as error:
        from ops.errors import TinyLlamaError  # here: numpy comes with it, and --help needs none

        if not isinstance(error, TinyLlamaError):
            raise
        return _told(name, str(error))


def _told(name: str, sentence: str) -> int:
    print(f"{name}: {printable(sentence)}", file=sys.stderr)
    return 1


def _unwind_when_killed() -> None:
    """`kill`, `timeout` and a closed terminal end the program as Ctrl-C does: what is half written goes."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            with suppress(ValueError):  # only a program's main thread may
                signal.signal(number, _end)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _open_streams() -> None:
    """Streams that take any text: UTF-8 unless a terminal says otherwise; closed ones become the null device."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
    if hasattr(sys.stdin, "reconfigure") and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8")
    if hasattr(sys.stdout, "reconfigure"):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:  # file names that are no UTF-8 go out as they came in
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    if hasattr(sys.stderr, "reconfigure"):
        sys.stderr.reconfigure(errors="backslashreplace")


def _drop_what_is_buffered() -> None:
    """What could not be written would be tried again at the end of the program."""
    with suppress(OSError, ValueError):  # where stdout is no file, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
