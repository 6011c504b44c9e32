"""The kernels' source texts: files of their own, put together with the prelude of the language they are compiled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

KERNELS = Path(__file__).parent / "kernels"
_INCLUDE = re.compile(r'^#include "(\w+\.[ch])"$', re.MULTILINE)


def source(language: Literal["opencl", "cuda"], file: str, defines: Mapping[str, int | str]) -> str:
    """The whole text of one program. A compiler's message names the kernel file and its line."""
    macros = "".join(f"#define {name} {value}\n" for name, value in sorted(defines.items()))
    return f"{macros}{_text(f'prelude_{language}.h')}{_text(file)}"


@cache
def _text(file: str) -> str:
    """A file with what it includes in place, since compilers of strings have no folder to look in."""
    lines = (KERNELS / file).read_text("utf-8")

    def included(match: re.Match[str]) -> str:
        line = lines.count("\n", 0, match.start()) + 2
        return f'{_text(match[1])}#line {line} "{file}"'

    return f'#line 1 "{file}"\n{_INCLUDE.sub(included, lines)}'
