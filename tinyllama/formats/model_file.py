"""What every reader of a file format gives: metadata by GGUF's key names, and tensors that are read when touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.tensor import Tensor


@dataclass(frozen=True, eq=False)
class ModelFile:
    """An opened model file. Opening has read the metadata and no tensor."""

    path: Path
    format: str  # as a person would say it: "GGUF v3"
    metadata: Mapping[str, Any]  # str, int, float, bool; lists of str or bytes-decoded text; numpy arrays of numbers
    tensors: Mapping[str, Tensor]
    mapped: bool  # True: tensors are views of the mapped file; False: they were read into memory
    check: Callable[[], None]  # raises FormatError if the file has shrunk since: a view of what is gone would kill the process
    number_types: Mapping[str, str] = field(default_factory=dict)  # of single numbers in the metadata, numpy's names: "<u4"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def n_params(self) -> int:
        return sum(t.n_params for t in self.tensors.values())
