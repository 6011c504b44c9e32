"""The squared error that llama.cpp's own quantiser reaches on tensors that every machine can make again, and on a model's.

    pip install llama-cpp-python gguf
    python tests/golden/make_quantize_errors.py SmolLM2-135M-Instruct.Q4_1.gguf    # rewrites tests/data/quantize_errors.json

For each tensor: the sum of its squares, and the summed squared error of llama.cpp's Q4_K, Q5_K and Q6_K. The blocks come
from `ggml_quantize_chunk` of the libggml-base that llama-cpp-python brings, without an importance matrix; the `gguf` package
makes weights of them again. Neither is this project's code. `tinyllama pull smollm2` fetches the model.
"""

from __future__ import annotations

import ctypes
import json
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

TARGET = Path(__file__).parent.parent / "data" / "quantize_errors.json"
FORMATS = ("Q4_K", "Q5_K", "Q6_K")


def tensors() -> dict[str, NDArray[np.float32]]:
    """float32[24, 1024] each: what weights look like, and what they should not look like."""
    rng, shape = np.random.default_rng(2023), (24, 1024)
    normal = rng.standard_normal(shape) * 0.02
    outliers = normal * np.where(rng.random(shape) < 0.002, 50, 1)
    scale_of_row = np.exp(3 * rng.standard_normal((shape[0], 1)))
    scale_of_group = np.exp(rng.standard_normal((shape[0], shape[1] // 32, 1)))
    made = {
        "normal": normal,
        "laplacian": rng.laplace(size=shape),
        "heavy-tailed": rng.standard_t(3, shape),
        "outliers": outliers,
        "uniform": rng.uniform(-1, 1, shape),
        "positive": rng.uniform(0.5, 1.5, shape),
        "negative": rng.uniform(-1.5, -0.5, shape),
        "far from zero": 1 + normal,
        "tiny": normal * 1e-4,
        "rows of all sizes": normal * scale_of_row,
        "groups of all sizes": (normal.reshape(shape[0], -1, 32) * scale_of_group).reshape(shape),
        "mostly zero": normal * (rng.random(shape) < 0.1),
        "four bits": rng.integers(-8, 8, shape) / 8,
    }
    return {name: values.astype(np.float32) for name, values in made.items()}


def model_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """float32[24, 1536] each: the matrices of SmolLM2 whose rows a K format can take, and its embedding cut into such rows."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def rows(name: str) -> NDArray[np.float32]:
        weights = gguf.dequantize(stored[name].data[:64], stored[name].tensor_type)
        return np.ascontiguousarray(weights.reshape(-1, 1536)[:24])

    return {name: rows(name) for name in ("blk.0.ffn_down.weight", "blk.29.ffn_down.weight", "token_embd.weight")}


def squared_error(x: NDArray[np.float32], blocks: NDArray[np.uint8], name: str) -> float:
    restored = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(x.shape)
    return float(np.square(restored.astype(np.float64) - x).sum())


def main() -> None:
    folder = Path(str(distribution("llama-cpp-python").locate_file("llama_cpp/lib")))
    ggml = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    quantize_chunk = ggml.ggml_quantize_chunk  # (type, from, to, first weight, rows, weights of a row, importance)
    quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    quantize_chunk.restype = ctypes.c_size_t
    found = {}
    for tensor, x in {**tensors(), **model_tensors(Path(sys.argv[1]))}.items():
        entry = {"energy": float(np.square(x.astype(np.float64)).sum())}
        for name in FORMATS:
            ggml_type = gguf.GGMLQuantizationType[name]
            size, size_in_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
            blocks = np.empty((x.size // size, size_in_bytes), np.uint8)
            written = quantize_chunk(ggml_type.value, x.ctypes.data, blocks.ctypes.data, 0, *x.shape, None)
            assert written == blocks.nbytes
            entry[name] = squared_error(x, blocks, name)
        found[tensor] = entry
    made_by = f"llama-cpp-python {version('llama-cpp-python')}"
    TARGET.write_text(json.dumps({"made by": made_by, "tensors": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
