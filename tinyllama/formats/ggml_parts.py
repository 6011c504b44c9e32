"""Models in several files: ggml-model-q4_0.bin, ggml-model-q4_0.bin.1 ... joined to one without a copy.

LLaMA's own checkpoints of 13B and more are cut for model-parallel GPUs, and the first converter left them cut: 2 parts of 13B,
4 of 30B, 8 of 65B. Each part has the header and the vocabulary again, and its share of every matrix. Which way a matrix is cut
is known by its name: a product whose outputs are shared out is cut by rows, one whose inputs are by columns (Shoeybi et al.
2019, Megatron-LM, section 3; the names are those of llama.cpp's `llama_load_tensor::calc_split_type`). Vectors are whole in
every part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .ggml_file import GgmlFile, Place, scan
from .joined_rows import Rows, below, beside
from .other_files import is_there

EMBEDDING = "tok_embeddings.weight"
CUT_BY_COLUMNS = (EMBEDDING, ".attention.wo.weight", ".feed_forward.w2.weight")  # ends of names


def scan_parts(path: Path) -> list[GgmlFile]:
    """The file and its further parts. How many there are is told by the first: its share of the embedding's columns.

    FormatError: a part is missing or belongs to another model.
    """
    first = scan(path)
    if EMBEDDING not in first.places:
        raise first.error(f"there is no tensor {EMBEDDING}: the file is cut short, or no LLaMA model, and others are not read")
    share, n_embd = first.places[EMBEDDING].dims[0], first.sizes.n_embd
    if n_embd % share:
        raise first.error(f"{EMBEDDING} has {share} columns, which is no part of n_embd = {n_embd}; the file is damaged")
    if share < n_embd and path.suffix[1:].isdigit():
        raise first.error(f"this is one part of a model in several files; open the first of them, {path.stem}")
    parts = [first]
    for i in range(1, n_embd // share):
        further = path.with_name(f"{path.name}.{i}")
        if not is_there(further):
            raise first.error(
                f"this is one of the {n_embd // share} parts of a model, and part {i + 1}, {further.name}, is missing; "
                "all of them have to be in one folder"
            )
        part = scan(further)
        if (part.format, part.sizes, part.places.keys()) != (first.format, first.sizes, first.places.keys()):
            raise part.error(f"this part and {path.name} do not belong to one model; put all parts of one model together")
        parts.append(part)
    return parts


def joined(name: str, places: Sequence[Place], parts: Sequence[Rows]) -> tuple[tuple[int, ...], Rows] | None:
    """The whole of a tensor: dimensions, contiguous first, and rows that are put together when they are asked for.

    `parts` holds each part's rows. None: the parts do not fit together.
    """
    first = places[0]
    if any(place.format != first.format or len(place.dims) != len(first.dims) for place in places):
        return None
    if len(first.dims) == 1 or len(places) == 1:
        return (first.dims, parts[0]) if all(place.dims == first.dims for place in places) else None
    n_columns, n_rows = ([place.dims[axis] for place in places] for axis in (0, 1))
    if name.endswith(CUT_BY_COLUMNS):
        return ((sum(n_columns), n_rows[0]), beside(parts)) if len(set(n_rows)) == 1 else None
    return ((n_columns[0], sum(n_rows)), below(parts)) if len(set(n_columns)) == 1 else None
