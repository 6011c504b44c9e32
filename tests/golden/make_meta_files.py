"""Files of torch.save for the tests of Meta's folders: the zip files of today, and the pickles from before torch 1.6.

    pip install torch gguf
    python tests/golden/make_meta_files.py        # rewrites tests/data/meta

zip/ and legacy/ hold the model of `tiny_model` in two files each, in bfloat16 and in float16. tensors.pth and
tensors_legacy.pth hold what a state_dict may: parameters, the attribute _metadata, tensors that share a storage, and one that
lies there transposed; their numbers count from 0. Everything is made here, under this project's licence (MIT).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import torch

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from writers.meta import of_300_tokens, write_meta  # noqa: E402
from writers.tiny import TinyLlama  # noqa: E402

TARGET = TESTS / "data" / "meta"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tiny_model() -> TinyLlama:
    return of_300_tokens(TinyLlama(n_embd=32, n_ff=96, n_layer=1, n_head_kv=2, seed=5))


def main() -> None:
    for kind, dtype, legacy in (("zip", "BF16", False), ("legacy", "F16", True)):

        def save(path: Path, tensors, kind: str, legacy: bool = legacy) -> None:
            values = {name: torch.from_numpy(tensor).to(DTYPES[kind]) for name, tensor in tensors.items()}
            torch.save(values, path, _use_new_zipfile_serialization=not legacy)

        write_meta(TARGET / kind, tiny_model(), 2, dtype, save=save)

    counted = torch.arange(60, dtype=torch.float32)
    tensors = OrderedDict(
        whole=torch.nn.Parameter(counted.reshape(6, 10)),
        rows=counted.reshape(6, 10)[2:4],
        transposed=counted.reshape(6, 10).t(),
        column=counted.reshape(6, 10)[:, 3],
        vector=counted[7:11],
        half=torch.arange(6, dtype=torch.float16).reshape(2, 3),
        brain=torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    )
    tensors._metadata = OrderedDict({"": {"version": 1}})
    for name, zipped in (("tensors.pth", True), ("tensors_legacy.pth", False)):
        torch.save(tensors, TARGET / name, _use_new_zipfile_serialization=zipped)


if __name__ == "__main__":
    main()
