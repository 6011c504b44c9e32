"""What Oclgrind writes to its log, as reports: what went wrong, in which kernel, at which line of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = {  # how a message of Oclgrind 21.10 begins, and what it means
    r"Invalid read": "invalid read",
    r"Invalid write": "invalid write",
    r"Index \(\S+\) exceeds static array size": "index beyond an array",
    r"Invalid memory (load|store) .* not aligned": "unaligned access",
    r"\S+ data race": "data race",
    r"Uninitialized|Controlflow depends on uninitialized|Instruction depends on an uninitialized": "uninitialised",
    r"Work-(group|item) divergence": "divergence at a barrier",
}
# A message ends with two empty lines; an indented one within it is a tab.
_MESSAGE = re.compile(r"^(?=\S)(.+?)(?=^\n|\Z)", re.MULTILINE | re.DOTALL)
_KERNEL = re.compile(r"^\s*Kernel: +(\w+)|When creating kernel '(\w+)'", re.MULTILINE)
_PLACE = re.compile(r"^\s*At line (\d+) .*? of (\S+):", re.MULTILINE)


@dataclass(frozen=True)
class Report:
    kind: str
    kernel: str
    file: str  # in backends/device/kernels; "" where Oclgrind does not say
    line: int
    message: str  # its first line


def reports(log: str) -> Iterator[Report]:
    """All messages of a log, also those of a kind that is not known."""
    for (message,) in (m.groups() for m in _MESSAGE.finditer(log)):
        first, *rest = message.splitlines()
        if first.startswith("OCLGRIND FATAL ERROR") and rest:
            first = rest[0].strip()
        kind = next((kind for begins, kind in KINDS.items() if re.match(begins, first)), "error of the simulator")
        kernel, place = _KERNEL.search(message), _PLACE.search(message)
        yield Report(
            kind=kind,
            kernel=(kernel[1] or kernel[2]) if kernel else "",
            file=place[2] if place else "",
            line=int(place[1]) if place else 0,
            message=first.strip(),
        )
