"""What a run tells the person who started it: the model and where it lives, the prompt's tokens, the timings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.base import Coverage

from .device_memory import Needs
from .memory import mib, peak_resident
from .offload import is_device, label
from .planning import MemoryPlan, OnPaper
from .printable import printable

if TYPE_CHECKING:
    from .generation import Generation
    from .model import Model


# Layers, n_embd, key heads -> the name, as llama.cpp told it from the layers alone.
LLAMAS = {
    (26, 3200, 32): "3B",
    (32, 4096, 32): "7B",
    (40, 5120, 40): "13B",
    (60, 6656, 52): "30B",
    (80, 8192, 64): "65B",
    (80, 8192, 8): "70B",
}


def load_summary(model: Model) -> str:
    """The model's sizes, and what it takes, in the words and the order of llama.cpp's log of 2023."""
    cfg, file = model.config, model.file
    scale = "" if cfg.rope_freq_scale == 1 else f", freq_scale = {cfg.rope_freq_scale:g}"
    lines = {
        "model": printable(f"{file.path.name}{f' ({cfg.name})' if cfg.name else ''}"),
        "format": file.format,
        "arch": cfg.arch,
        "n_vocab": cfg.n_vocab,
        "n_ctx": f"{model.n_ctx} (trained on {_window_told(model)})",
        "n_embd": cfg.n_embd,
        "n_mult": file.metadata.get("ggml.n_mult"),
        "n_head": cfg.n_head,
        "n_head_kv": cfg.n_head_kv,
        "n_layer": cfg.n_layer,
        "n_rot": f"{cfg.n_rot}, freq_base = {cfg.rope_freq_base:g}{scale}",
        "ftype": _ftype_told(model),
        "n_ff": cfg.n_ff,
        "n_parts": file.metadata.get("ggml.n_parts"),
        "params": f"{file.n_params / 1e6:.2f} M" if file.n_params < 1e9 else f"{file.n_params / 1e9:.2f} B",
        "model size": _size_told(model),
        "weights": "mmapped" if file.mapped else "read into memory",
        "mem required": _host_memory_told(model),
        "backend": _backends_told(model),
        "placement": "; ".join(model.placement.ranges()),
        "ops": coverage_told(model.coverage()),
        **_devices_told(model),
        "kv self size": f"{mib(model.kv_bytes(model.n_ctx))} when full, {_kv_told(model)}",
        "load time": f"{model.load_seconds:.2f} s",
    }
    return "\n".join(f"load: {key:<12} = {value}" for key, value in lines.items() if value is not None)


def _window_told(model: Model) -> str:
    """`4096, its sliding window`; in a longer context a token here sees what is further back too, as it should not."""
    n, window = model.config.n_ctx_train, model.config.n_swa
    if window is not None and model.n_ctx > window:
        return f"{n}; beyond its sliding window of {window}, results are not the model's own"
    return f"{n}, its sliding window" if n == window else str(n)


def _ftype_told(model: Model) -> str:
    """`2 (mostly Q4_0)`: the file's number for the type of most weights, and its name."""
    number, name = model.metadata.get("general.file_type"), model.config.ftype
    return name if number is None else f"{number} ({'all' if name == 'F32' else 'mostly'} {name})"


def _size_told(model: Model) -> str:
    """`13B, 7.59 GiB (5.01 bits a weight)`; the name only of the LLaMAs that files before GGUF were made of."""
    cfg, file = model.config, model.file
    name = LLAMAS.get((cfg.n_layer, cfg.n_embd, cfg.n_head_kv)) if "ggml.n_mult" in file.metadata else None
    return f"{f'{name}, ' if name else ''}{mib(file.nbytes)} ({8 * file.nbytes / max(file.n_params, 1):.2f} bits a weight)"


def _host_memory_told(model: Model) -> str:
    """What the layers that no device has will take: weights as they are multiplied, pages of the file, scratch; KV cache."""
    device = model.backend if is_device(model.backend) else OnPaper()
    tokenizer = model.tokenizer if "tokenizer.ggml.tokens" in model.metadata else None
    needs = MemoryPlan(model.file, model.demand, model.placement, device, 0).on_host(tokenizer)
    return f"{mib(needs.total - needs.device - needs.kv_cache)} (+ {mib(needs.kv_cache)} per context)"


def _backends_told(model: Model) -> str:
    """What computes, and how it came to that: `opencl on ..., kernels for a CPU (auto took opencl; cupy: not installed)`."""
    described = "; ".join(backend.describe() for backend in model.placement.backends)
    return f"{described} ({model.auto})" if model.auto else described


def _kv_told(model: Model) -> str:
    """The type of the KV cache's numbers, and whether it grows: `float32; grows as it is used`."""
    dtypes: dict[str, str] = {}  # backend -> what its layers' caches are kept in
    for name, (layer, _) in model.caches().items():
        if name.startswith("cache_k"):
            k, v = model.cache_dtypes[name], model.cache_dtypes[name.replace("cache_k", "cache_v")]
            dtypes[label(model.placement.layers[layer])] = str(k) if k == v else f"keys {k}, values {v}"
    same = len(set(dtypes.values())) == 1
    told = next(iter(dtypes.values())) if same else ", ".join(f"{dtype} on {where}" for where, dtype in dtypes.items())
    grows = {label(backend): backend.kv_grows for backend in model.placement.layers}
    if all(grows.values()):
        return f"{told}; grows as it is used"
    growing = [where for where, does in grows.items() if does]
    return f"{told}; taken at once" + (f", grows on {', '.join(growing)}" if growing else "")


def _devices_told(model: Model) -> dict[str, str]:
    """What went to each device, and what memory it takes there."""
    lines, needed, n = {}, model.memory_needed(), model.config.n_layer + 1
    asked = [model.backend] if is_device(model.backend) else []  # -ngl auto may have left it without a layer
    devices = list(dict.fromkeys([*model.placement.devices, *asked]))
    for device in devices:
        name, needs, free = label(device), needed.get(device, Needs()), device.memory_free()
        of = f" on {name}" if len(devices) > 1 else ""
        what = device.describe().removeprefix(f"{device.name} on ")
        lines[f"offloading{of}"] = f"{model.placement.count(device)} of {n} layers to {name} ({what})"
        lines[f"total VRAM used{of}"] = (
            f"{mib(needs.total)}"
            + (f" of {mib(free)} free" if free is not None else "")
            + (f": weights {mib(needs.weights)}, KV cache {mib(needs.kv_cache)}, scratch {mib(needs.scratch)}")
        )
    if not devices:
        advice = "" if model.auto else "; --backend opencl uses a device"
        lines["offloading"] = f"0 of {n} layers: {model.backend.name} computes on the host{advice}"
        lines["total VRAM used"] = mib(0)
    return lines


def coverage_told(coverage: Coverage) -> str:
    """`211 by a kernel; decomposed: attention x30; on the host, for want of a kernel: rope x60`"""
    parts = [f"{coverage.kernel.total()} by a kernel"]
    for told, ops in (("decomposed", coverage.decomposed), ("on the host, for want of a kernel", coverage.on_host)):
        if ops:
            parts.append(f"{told}: " + ", ".join(f"{op} x{n}" for op, n in ops.items()))
    return "; ".join(parts)


def prompt_summary(model: Model, tokens: Sequence[int]) -> str:
    """A prompt's tokens, one a line: id and text."""
    lines = [f"prompt: {len(tokens)} tokens"]
    lines += [f"{token:>6} -> {model.tokenizer.piece(token).decode('utf-8', 'replace')!r}" for token in tokens]
    return "\n".join(lines)


def timings_summary(generation: Generation) -> str:
    """Why the text ended, where that needs telling, and how long what took."""
    t, context = generation.timings, generation.context
    lines = [""]
    if generation.stop_reason == "context":
        lines.append(f"stopped: the context is full (n_ctx = {context.n_ctx}); -c sets a longer one")
    if on_host := context.model.coverage().on_host:
        lines.append("on the host, for want of a kernel: " + ", ".join(f"{op} x{n}" for op, n in on_host.items()))
    lines += [
        f"load time   = {context.model.load_seconds + context.warm_up_seconds:8.2f} s",
        f"prompt      = {_speed(t.prompt_tokens, t.prompt_seconds)}",
        f"generation  = {_speed(t.generated_tokens, t.generation_seconds)}",
        f"peak memory = {mib(peak) if (peak := peak_resident()) else 'not told by this system'}",
    ]
    return "\n".join(lines)


def _speed(tokens: int, seconds: float) -> str:
    per_second = tokens / seconds if seconds else 0.0
    return f"{seconds:8.2f} s, {tokens:5} tokens, {per_second:8.2f} tokens/s"
