"""A chat template is a program from a stranger, inside a model's file: it runs in a process of its own.

There Jinja's sandbox gives it no files, no attributes of Python's own, and no changing of what it is given
(template_process.py). But the sandbox lets a program loop for hours, or fill the memory, and neither can be stopped from inside
Python while one operation lasts. A process can: it is ended when its time is over, and the system gives it no more memory
than it may have. It is started once, and then waits for the next conversation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from time import monotonic
from typing import Any
from weakref import finalize

from ops.errors import ModelError, OptionError

TIME_LIMIT_S = 5.0  # of one rendering
START_LIMIT_S = 60.0  # of the process: some tenths of a second, but on a machine that is busy
SIZE_LIMIT = 10_000_000  # characters of one rendering
MEMORY_LIMIT = 1 << 30  # bytes of address space, where the system can hold a process to that; Python takes 50 MB of them
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tinyllama.template_process import main; main()"

_worker: _Worker | None = None
_lock = Lock()


def run_template(template: str, variables: Mapping[str, Any]) -> str:
    """What a Jinja template makes of its variables, which are text, numbers, truth values, None, lists and dicts.

    ModelError: it is no Jinja, it fails, or it takes more time or memory than it may; OptionError: other variables.
    """
    try:
        request = json.dumps({"template": template, "variables": variables, "size_limit": SIZE_LIMIT})
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"a chat template takes text, numbers, lists and dicts only: {error}") from None
    global _worker  # one process for all renderings
    with _lock:
        if _worker is None or not _worker.is_usable():
            _worker = _Worker()
        worker, began = _worker, monotonic()
        answer = worker.ask(request, TIME_LIMIT_S)
    if answer is None:
        is_late = monotonic() - began >= TIME_LIMIT_S
        why = f"it ran for more than {TIME_LIMIT_S:g} seconds" if is_late else "its process died, perhaps for want of memory"
        raise ModelError(f"the chat template was stopped: {why}")
    if "error" in answer:
        raise ModelError(f"the chat template {answer['error']}")
    return str(answer["text"])


class _Worker:
    """The process, and a line of JSON to and fro."""

    def __init__(self) -> None:
        # It finds the modules that this process finds, and none in the folder that happens to be the current one.
        path = [str(Path(__file__).parent.parent), *filter(None, sys.path)]
        command = [sys.executable, "-I", "-c", START, json.dumps(path), str(MEMORY_LIMIT)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
        )
        self._owner = os.getpid()
        finalize(self, _end, self._process, self._owner)  # when Python ends, too
        if self.ask("{}", START_LIMIT_S) is None:
            raise ModelError("the process that chat templates run in did not start: is jinja2 installed for this Python?")

    def is_usable(self) -> bool:
        """Not dead, and not that of a process which this one was forked from."""
        return self._process.poll() is None and self._owner == os.getpid()

    def ask(self, request: str, limit: float) -> Any:
        """Its answer; None if it has none within the limit, in seconds: then it is ended."""
        assert self._process.stdin
        assert self._process.stdout
        timer = Timer(limit, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:  # it died while it was told
            answer = ""
        except BaseException:  # Ctrl-C: its answer would come to the next question
            _end(self._process, self._owner)
            raise
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            _end(self._process, self._owner)
            return None
        return json.loads(answer)


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:  # a fork has a copy of all this, but the process serves the one that started it
        return
    process.kill()
    with suppress(OSError):  # what was not sent
        process.communicate()
