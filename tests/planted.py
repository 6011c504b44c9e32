"""OpenCL backends with one mistake each in their kernels, for tests of what finds it. They are named as module:Class."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

from backends import Options
from backends.device import sources
from backends.opencl import OpenCL

RIGHT = sources.KERNELS
FOLDER = tempfile.TemporaryDirectory()


class Planted(OpenCL):
    """Compiles a copy of the kernels, of which one file has been changed; for a process that runs no other backend."""

    file: ClassVar[str]
    right: ClassVar[str]
    wrong: ClassVar[str]

    def __init__(self, options: Options | None = None) -> None:
        copied = Path(FOLDER.name, type(self).__name__)
        shutil.copytree(RIGHT, copied, dirs_exist_ok=True)
        text = (copied / self.file).read_text("utf-8")
        assert text.count(self.right) == 1
        (copied / self.file).write_text(text.replace(self.right, self.wrong), "utf-8")
        sources.KERNELS = copied
        sources._text.cache_clear()
        super().__init__(options)

    @classmethod
    def line(cls, of: str) -> int:
        """Where this stands in the file, counted from 1, after the change."""
        text = (RIGHT / cls.file).read_text("utf-8").replace(cls.right, cls.wrong)
        return text[: text.index(of)].count("\n") + 1


class BeyondTheEnd(Planted):
    """Reads one number more than the last row has."""

    file = "norm.c"
    right = "i < n; i += LANES) part[0]"
    wrong = "i <= n; i += LANES) part[0]"


class Race(Planted):
    """Adds up what other lanes may not have written yet."""

    file = "sums.c"
    right = "    shared[LANE] = x;\n    BARRIER();\n"
    wrong = "    shared[LANE] = x;\n"


class Uninitialised(Planted):
    """Sums that do not begin at 0."""

    file = "norm.c"
    right = "float part[16] = {0};"
    wrong = "float part[16];"
