"""What a run tells the person who started it: the model and where it lives, the prompt's tokens, the timings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.base import Coverage

from .device_memory import Needs
from .memory import mib, peak_resident
from .offload import is_device, label
from .printable import printable

if TYPE_CHECKING:
    from .generation import Generation
    from .model import Model


def load_summary(model: Model) -> str:
    """The model's sizes, in llama.cpp's words."""
    cfg, file = model.config, model.file
    scale = "" if cfg.rope_freq_scale == 1 else f", freq_scale = {cfg.rope_freq_scale:g}"
    lines = {
        "model": printable(f"{file.path.name}{f' ({cfg.name})' if cfg.name else ''}"),
        "format": file.format,
        "arch": cfg.arch,
        "n_vocab": cfg.n_vocab,
        "n_ctx": f"{model.n_ctx} (trained on {cfg.n_ctx_train})",
        "n_embd": cfg.n_embd,
        "n_head": cfg.n_head,
        "n_head_kv": cfg.n_head_kv,
        "n_layer": cfg.n_layer,
        "n_rot": f"{cfg.n_rot}, freq_base = {cfg.rope_freq_base:g}{scale}",
        "n_ff": cfg.n_ff,
        "ftype": cfg.ftype,
        "params": f"{file.n_params / 1e6:.2f} M" if file.n_params < 1e9 else f"{file.n_params / 1e9:.2f} B",
        "model size": f"{mib(file.nbytes)} ({8 * file.nbytes / max(file.n_params, 1):.2f} bits a weight)",
        "KV self size": f"{mib(model.kv_bytes(model.n_ctx))} when full, {_kv_told(model)}",
        "weights": "mmapped" if file.mapped else "read into memory",
        "backend": "; ".join(backend.describe() for backend in model.placement.backends),
        "placement": "; ".join(model.placement.ranges()),
        "ops": coverage_told(model.coverage()),
        "load time": f"{model.load_seconds:.2f} s",
    }
    told = [f"load: {key:<12} = {value}" for key, value in lines.items()]
    return "\n".join([*told[:-1], *_devices_told(model), told[-1]])


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


def _devices_told(model: Model) -> list[str]:
    """What went to each device, in llama.cpp's words, and what memory it takes."""
    lines, needed = [], model.memory_needed()
    asked = [model.backend] if is_device(model.backend) else []  # -ngl auto may have left it without a layer
    for device in dict.fromkeys([*model.placement.devices, *asked]):
        name, needs, free = label(device), needed.get(device, Needs()), device.memory_free()
        what = device.describe().removeprefix(f"{device.name} on ")
        lines.append(
            f"load: offloaded {model.placement.count(device)}/{model.config.n_layer + 1} layers to {name} ({what})\n"
            f"load: memory of {name} = weights {mib(needs.weights)}, KV cache {mib(needs.kv_cache)}, "
            f"scratch {mib(needs.scratch)}, total {mib(needs.total)}" + (f" of {mib(free)} free" if free is not None else "")
        )
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
