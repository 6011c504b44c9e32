"""A memory plan for a person, with the arithmetic shown so that it can be checked by hand; and for a program."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ops.tensor import Tensor

from .device_memory import Needs
from .memory import mib
from .planning import HostNeeds, MemoryPlan

# What was seen in 2023, for comparison.
STORY = {
    "llama-13b": "2023: 40 of 40 layers took 7562 MB of VRAM as ggjt v2, Q4_0 (the matrices alone: the KV cache, 400 MB at "
    "n_ctx 512, stayed in the host's memory until llama.cpp's pull request 1827).",
    "llama-30b": "2023: 28 of 60 layers was what people ran on a 12 GB card, 8.7 GiB of matrices. The rest of the card was "
    "taken by the desktop, CUDA's context, cuBLAS's workspace and the matrices it multiplies in floats (docs/planning.md).",
    "llama-65b": "2023: 65B in 4 bits was told to need about 41 GB: the matrices, 20 bytes for 32 weights.",
    "falcon-40b": "2023: Falcon-40B in 4 bits ran on one A100 of 40 GB.",
}


def report(plan: MemoryPlan, host: HostNeeds, gguf: MemoryPlan | None = None) -> str:
    """The whole plan. gguf: the same in today's blocks, to be told beside one in those of 2023."""
    return "\n".join([*_head(plan), "", *_weights(plan), "", *_kv_cache(plan), "", *_memory(plan, host), *_remarks(plan, gguf)])


def _head(plan: MemoryPlan) -> Iterator[str]:
    cfg, file = plan.demand.built.config, plan.file
    yield (
        f"{file.path.name}: {cfg.arch}, {plan.n_layer} layers, {file.n_params / 1e9:.2f} B weights, {file.format}, "
        f"{8 * file.nbytes / file.n_params:.2f} bits a weight"
    )
    yield f"n_ctx = {plan.demand.n_ctx}, n_batch = {plan.demand.n_batch}, -ngl {plan.n_offloaded} of {plan.n_layer + 1}"
    if cfg.n_swa and plan.demand.n_ctx > cfg.n_swa:
        yield f"beyond the model's sliding window of {cfg.n_swa} tokens, results are not its own"


def _weights(plan: MemoryPlan) -> Iterator[str]:
    """A line for all tensors that are alike; a layer's together, then those beside the layers."""
    groups: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = defaultdict(list)
    for tensor in plan.file.tensors.values():
        groups[re.sub(r"blk\.\d+\.", "", tensor.name), tensor.shape, tensor.format.name].append(tensor)
    yield "Weights"
    for (name, shape, _), alike in groups.items():
        format, number = alike[0].format, len(alike)
        sizes = " x ".join(map(str, shape))
        per = f"{format.block_bytes} bytes / {format.block_size}" if format.block_size > 1 else f"{format.block_bytes} bytes"
        yield (
            f"  {name.removesuffix('.weight'):<16}{f'{number} x ' if number > 1 else '':>6}{sizes:<16}"
            f"{format.name:<10}{per:<16}{mib(_size(alike)):>12}"
        )
    layers = [t for t in plan.file.tensors.values() if t.name.startswith("blk.")]
    matrices = [t for t in layers if len(t.shape) > 1]
    yield (
        f"  matrices of {plan.n_layer} layers: {_n_params(matrices) / 1e6:.1f} M weights, {mib(_size(matrices))}; "
        f"their norms: {mib(_size(layers) - _size(matrices))}"
    )
    yield f"  all tensors: {plan.file.n_params / 1e6:.1f} M weights, {mib(plan.file.nbytes)} ({plan.file.nbytes / 1e9:.2f} GB)"


def _kv_cache(plan: MemoryPlan) -> Iterator[str]:
    cfg = plan.demand.built.config
    yield "KV cache"
    yield (
        f"  {plan.n_layer} layers x {plan.demand.n_ctx} places x {cfg.n_head_kv} heads x ({cfg.n_embd_head_k} of a key + "
        f"{cfg.n_embd_head_v} of a value) x 2 bytes = {mib(plan.kv_bytes('f16'))} in f16; in f32 {mib(plan.kv_bytes('f32'))}"
    )


def _memory(plan: MemoryPlan, host: HostNeeds) -> Iterator[str]:
    device, free = plan.on_device, plan.device.memory_free()
    columns = ["weights", "kv_cache", "scratch", "mapped", "program", *(["device"] if host.device else []), "total"]
    yield f"Memory{'layers':>22}" + "".join(f"{column.replace('kv_cache', 'KV cache'):>12}" for column in columns)
    hosts = ", ".join(b.name for b in plan.placement.backends if b is not plan.device) or "no layer"
    rows: list[tuple[str, int, Needs]] = [
        (f"host ({hosts})", plan.n_layer + 1 - plan.n_offloaded, host),
        (plan.device.name + (f" ({mib(free)})" if free is not None else ""), plan.n_offloaded, device),
    ]
    for name, layers, needs in rows:
        amounts = [mib(getattr(needs, column)) if hasattr(needs, column) else "" for column in columns]
        yield f"  {name:<20}{layers:>6}" + "".join(f"{amount:>12}" for amount in amounts)
    if host.device:
        yield (
            f"  the {plan.device.name} device computes in the host's memory: its buffers and kernels are there too\n"
            "  (a first run, which compiles the kernels, takes some 110 MiB more)"
        )
    if plan.n_offloaded:
        layers = min(plan.n_offloaded, plan.n_layer)
        beside = " and beside the layers" if plan.n_offloaded > plan.n_layer else ""
        yield (
            f"  of the weights on the device, matrices of {layers} of {plan.n_layer} layers{beside}: "
            f"{mib(plan.matrices_on_device)}"
        )
    if free is not None:
        yield f"  {'it fits' if plan.fits else 'IT DOES NOT FIT'}: {_fitting(plan)}"


def _fitting(plan: MemoryPlan) -> str:
    n, of = plan.fitting, plan.n_layer
    if not n:
        return "there is room for no layer"
    return "all layers and the output can be on the device" if n > of else f"the largest -ngl that fits is {n} of {of + 1}"


def _remarks(plan: MemoryPlan, gguf: MemoryPlan | None) -> Iterator[str]:
    if gguf is not None:
        layers = (sum(t.nbytes for t in p.file.tensors.values() if t.name.startswith("blk.")) for p in (plan, gguf))
        then, now = layers
        yield (
            f"\nIn today's blocks (GGUF): {mib(gguf.file.nbytes)} in all where 2023 had {mib(plan.file.nbytes)}; "
            f"the layers {mib(now)} where it had {mib(then)}."
        )
    if story := STORY.get(plan.file.path.name):
        yield f"\n{story}"


def as_dict(plan: MemoryPlan, host: HostNeeds) -> dict[str, Any]:
    """The plan for a program; amounts in bytes."""
    file, free = plan.file, plan.device.memory_free()
    layers = [t for t in file.tensors.values() if t.name.startswith("blk.")]
    return {
        "model": file.path.name,
        "format": file.format,
        "n_params": file.n_params,
        "bits_per_weight": 8 * file.nbytes / file.n_params,
        "n_ctx": plan.demand.n_ctx,
        "n_batch": plan.demand.n_batch,
        "n_layer": plan.n_layer,
        "n_gpu_layers": plan.n_offloaded,
        "weights": {
            "all": file.nbytes,
            "layers": _size(layers),
            "layer_matrices": _size(t for t in layers if len(t.shape) > 1),
        },
        "kv_cache": {"f16": plan.kv_bytes("f16"), "f32": plan.kv_bytes("f32")},
        "host": {**asdict(host), "total": host.total},
        "device": {
            "name": plan.device.name,
            **asdict(plan.on_device),
            "matrices": plan.matrices_on_device,
            "total": plan.on_device.total,
            "memory": free,
            "fits": plan.fits,
            "largest_n_gpu_layers": plan.fitting,
        },
    }


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def _n_params(tensors: Iterable[Tensor]) -> int:
    return sum(t.n_params for t in tensors)
