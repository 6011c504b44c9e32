"""How fast a model runs: llama-bench's two tests, a prompt of p tokens and the generation of n, each after d others."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import mean, stdev
from time import perf_counter_ns
from typing import Any

import numpy as np

from backends.base import Observer

from .context import Context
from .kv_cache import TYPES
from .model import Model
from .offload import label


@dataclass(frozen=True)
class Case:
    """n_prompt tokens read at once, then n_gen one by one, in a context that holds n_depth already."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's: pp512, tg128, pp512+tg128, with @ d1024 for the depth."""
        phases = ([f"pp{self.n_prompt}"] if self.n_prompt else []) + ([f"tg{self.n_gen}"] if self.n_gen else [])
        return "+".join(phases) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        """Places it takes."""
        return self.n_depth + self.n_prompt + self.n_gen


def cases(prompts: Sequence[int], gens: Sequence[int], pairs: Sequence[tuple[int, int]], depths: Sequence[int]) -> list[Case]:
    """Every case of llama-bench's -p, -n, -pg and -d; 0 leaves a test out."""
    phases = [(p, 0) for p in prompts if p] + [(0, n) for n in gens if n] + [pair for pair in pairs if any(pair)]
    return [Case(p, n, d) for d in depths for p, n in phases]


def run_case(context: Context, case: Case, observe: Observer | None = None) -> int:
    """Nanoseconds of one run. Tokens are drawn at random, as llama-bench draws them: their values do not matter."""
    draw = np.random.default_rng(0).integers(0, context.model.config.n_vocab, case.n_tokens).tolist()
    fill, prompt, gen = (
        draw[: case.n_depth],
        draw[case.n_depth : case.n_depth + case.n_prompt],
        draw[case.n_depth + case.n_prompt :],
    )
    if context.tokens[: case.n_depth] == fill:
        context.rewind(case.n_depth)
    else:
        context.rewind(0)
        context.eval(fill)
    began = perf_counter_ns()
    if prompt:
        context.eval(prompt, observe=observe)
    for token in gen:
        context.eval([token], observe=observe)
    return perf_counter_ns() - began


def bench(
    model: Model, case: Case, *, repetitions: int, n_batch: int, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """One warm-up, then `repetitions` runs. The record has llama-bench's keys; speeds are in tokens/s."""
    context = model.context(n_ctx=case.n_tokens, n_batch=n_batch)
    run_case(context, case)
    samples_ns = []
    for _ in range(repetitions):
        samples_ns.append(run_case(context, case))
        progress()
    samples_ts = [1e9 * (case.n_prompt + case.n_gen) / ns for ns in samples_ns]
    return {
        "cpu_info": _cpu_name(),
        "backends": ",".join(dict.fromkeys(backend.name for backend in model.placement.backends)),
        "devices": ",".join(label(backend) for backend in model.placement.devices),
        "model_filename": str(model.file.path),
        "model_type": f"{model.config.arch} {model.config.ftype}",
        "model_size": model.file.nbytes,
        "model_n_params": model.file.n_params,
        "n_batch": n_batch,
        "n_threads": model.backend.n_threads,
        "type_k": _types(model, "cache_k"),
        "type_v": _types(model, "cache_v"),
        "n_gpu_layers": sum(model.placement.count(device) for device in model.placement.devices),
        "n_prompt": case.n_prompt,
        "n_gen": case.n_gen,
        "n_depth": case.n_depth,
        "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(mean(samples_ns)),
        "stddev_ns": round(stdev(samples_ns)) if repetitions > 1 else 0,
        "avg_ts": mean(samples_ts),
        "stddev_ts": stdev(samples_ts) if repetitions > 1 else 0.0,
        "samples_ns": samples_ns,
        "samples_ts": samples_ts,
    }


def _types(model: Model, kind: str) -> str:
    """What the caches of keys or of values are kept in, by llama.cpp's names; both if devices differ."""
    names = {dtype: name for name, dtype in TYPES.items()}
    return ",".join(dict.fromkeys(names[dtype] for name, dtype in model.cache_dtypes.items() if name.startswith(kind)))


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
