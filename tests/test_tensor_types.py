"""Which type each tensor gets, held against what llama.cpp's own quantiser did (tests/golden/make_tensor_types.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ops.errors import OptionError
from tinyllama.config import Config, config_from
from tinyllama.tensor_types import BASE, tensor_types

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "tensor_types.json").read_text())


def config(arch: str, n_layer: int, n_head: int, n_head_kv: int) -> Config:
    sizes = {"context_length": 64, "embedding_length": 64 * n_head, "block_count": n_layer, "feed_forward_length": 512}
    sizes |= {"attention.head_count": n_head, "attention.head_count_kv": n_head_kv, "attention.layer_norm_rms_epsilon": 1e-5}
    return config_from({"general.architecture": arch} | {f"{arch}.{key}": value for key, value in sizes.items()}, n_vocab=1)


def of_all_layers(by_kind: dict[str, Any], n_layer: int) -> dict[str, Any]:
    """The recorded entries, with a number for each `*`."""
    spread = {}
    for name, value in by_kind.items():
        for i in range(n_layer if "*" in name else 1):
            is_by_layer = isinstance(value, list) and isinstance(value[0], str)
            spread[name.replace("*", str(i))] = value[i] if is_by_layer else value
    return spread


@pytest.mark.parametrize("file_type", BASE)
@pytest.mark.parametrize("model", RECORDED)
def test_as_llama_cpp(model: str, file_type: str) -> None:
    recorded = RECORDED[model]
    n_layer = recorded["n_layer"]
    shapes = {name: tuple(shape) for name, shape in of_all_layers(recorded["shapes"], n_layer).items()}
    cfg = config(recorded["arch"], n_layer, recorded["n_head"], recorded["n_head_kv"])
    assert tensor_types(cfg, shapes, file_type) == of_all_layers(recorded["types"][file_type], n_layer)


def test_the_record_holds_every_type() -> None:
    assert all(set(recorded["types"]) == set(BASE) for recorded in RECORDED.values())


def test_either_case_and_no_other_name() -> None:
    cfg, shapes = config("llama", 1, 4, 4), {"blk.0.attn_q.weight": (1, 256)}
    assert tensor_types(cfg, shapes, "q5_k_m") == {"blk.0.attn_q.weight": "Q5_K"}
    with pytest.raises(OptionError, match=r"no type 'Q4_K' to quantise to: choose one of F32, .*Q4_K_M"):
        tensor_types(cfg, shapes, "Q4_K")
