"""A GGUF model in several files, NAME-00001-of-00003.gguf and so on: llama.cpp's way around limits on the size of a file.

Each part is a GGUF file with the keys split.no (0 for the first), split.count and split.tensors.count (of all parts together).
The first has the model's metadata; each has some of the tensors. Source: llama.cpp, tools/gguf-split, and llama.h's
`llama_split_path`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops.errors import FormatError
from ops.tensor import Tensor

from .model_file import ModelFile
from .other_files import is_there

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def is_part(file: ModelFile) -> bool:
    return COUNT in file.metadata and file.metadata[COUNT] != 1


def join_parts(file: ModelFile, read_part: Callable[[Path], ModelFile]) -> ModelFile:
    """The whole model of which `file` is a part, any of them. `read_part` opens one file.

    FormatError: a part is missing, is none of this model, or holds a tensor that another holds too.
    """
    match = _NAME.fullmatch(file.path.name)
    if match is None:
        raise FormatError(
            f"{file.path}: this is one part of a model in several files, which is not named NAME-00001-of-00003.gguf, so the "
            "others cannot be found; give the parts their names back"
        )
    name, _, written = match.groups()
    paths = [file.path.with_name(f"{name}-{i:05d}-of-{written}.gguf") for i in range(1, int(written) + 1)]
    for path in paths:
        if not is_there(path):
            raise FormatError(
                f"{file.path}: this model is in {int(written)} files, and {path.name} is missing; "
                "all of them have to be in one folder"
            )
    parts = [file if path == file.path else read_part(path) for path in paths]
    tensors: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        if (_number(part, NO), _number(part, COUNT)) != (i, len(parts)):
            raise FormatError(
                f"{part.path}: inside, this file says that it is part {_number(part, NO) + 1} of {_number(part, COUNT)}, "
                "against its name; give the parts their names back, or download them again"
            )
        if doubles := tensors.keys() & part.tensors.keys():
            raise FormatError(f"{part.path}: tensor {min(doubles)!r} is in an earlier part too; download the parts again")
        tensors |= part.tensors
    if TENSORS in parts[0].metadata and _number(parts[0], TENSORS) != len(tensors):
        raise FormatError(
            f"{parts[0].path}: the parts hold {len(tensors)} tensors, and should hold {_number(parts[0], TENSORS)}; "
            "download them again"
        )

    def check() -> None:
        for part in parts:
            part.check()

    first = parts[0]
    return ModelFile(
        path=first.path,
        format=f"{first.format}, {len(parts)} parts",
        metadata=_without_split(first.metadata),
        tensors=tensors,
        mapped=first.mapped,
        check=check,
        number_types=_without_split(first.number_types),
    )


def _number(part: ModelFile, key: str) -> int:
    value = part.metadata.get(key)
    if type(value) is not int:
        raise FormatError(f"{part.path}: {key} is {str(value)[:80]!r}, expected a number; download this part again")
    return value


def _without_split(values: Any) -> dict[str, Any]:
    """The whole is no part, and what is written from it is none either."""
    return {key: value for key, value in values.items() if key not in (NO, COUNT, TENSORS)}
