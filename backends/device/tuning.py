"""What a device is fastest with: measured once, at products as a model has them, and kept in a file for the next start.

A machine that is shared is now fast and now slow. So candidates take turns, and each turn compares all of them with the default
under much the same conditions. One takes the default's place if it is clearly faster in most turns: chance must not decide what
a device does from then on.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import ops
from ops.blocks import FORMATS
from ops.tensor import Tensor

from ..observing import Progress
from .launch import ROOMS, TABLE, Launch
from .replacing import replacing
from .runtime import CANDIDATES, Limits, Tuning, untuned
from .sources import source

if TYPE_CHECKING:
    from .backend import DeviceBackend

TELLS = "tuning products, once for this device"
GAIN = 1.05  # so many times as fast as the default a candidate must be, in three turns of four
SECONDS, FEWEST, MOST = 0.2, 8, 40  # turns for so long, but at least and at most so many, for each field
FORMAT = FORMATS["Q4_0"]  # of the weights; most of a quantised model's have 4 bits
PROGRAMS = ("product_int8.c", "matvec.c", "matmul_tile.c")

SMALL = ((1536, 576), (576, 1536))  # a small model's weights, by rows and columns: what is lost at the edges counts most here
# What is timed for a field of Tuning, one after the other: m, n and T of y[T, m] = x[T, n] W[m, n]^T.
PRODUCTS = {
    "tokens": tuple((m, n, 128) for m, n in (*SMALL, (2048, 2048))),
    "groups": tuple((m, n, 1) for m, n in (*SMALL * 8, (4096, 4096))),
    "tile": tuple((m, n, 63) for m, n in SMALL),  # more are left to a library, where there is one
    "few": tuple((m, n, n_tokens) for n_tokens in (6, 12, 24) for m, n in SMALL),
}
WORDS = {
    "tokens": "tokens a tile",
    "groups": "work-groups a core",
    "tile": "tokens and rows a tile, at most",
    "few": "tokens taken one by one, at most",
}


@dataclass(frozen=True)
class Answer:
    """The seconds that a field's candidates took, turn by turn."""

    field: str
    default: int
    seconds: Mapping[int, Sequence[float]]

    @property
    def chosen(self) -> int:
        """The best of those that are clearly faster than the default; the default if there is none."""
        gains = {n: sorted(self.gains(n))[len(self.seconds[n]) // 4] for n in self.seconds}
        best = max(gains, key=lambda n: gains[n])
        return best if gains[best] >= GAIN else self.default

    def gains(self, candidate: int) -> list[float]:
        """How many times as fast as the default, in each turn."""
        return [d / s for s, d in zip(self.seconds[candidate], self.seconds[self.default], strict=True)]

    def rate(self, candidate: int) -> str:
        """Weights read per second for a single token, operations per second for more."""
        taken, products = median(self.seconds[candidate]), PRODUCTS[self.field]
        if all(n_tokens == 1 for _, _, n_tokens in products):
            return f"{sum(m * FORMAT.row_bytes(n) for m, n, _ in products) / taken / 1e9:.1f} GB/s"
        return f"{sum(2 * m * n * n_tokens for m, n, n_tokens in products) / taken / 1e9:.1f} GOP/s"


def fields_of(limits: Limits) -> tuple[str, ...]:
    """What is measured on such a device, in this order: a later answer may depend on an earlier one."""
    if limits.integers:
        return ("tokens", "groups")
    return ("tile", "few") if limits.kind == "gpu" else ()


def of(answers: Sequence[Answer]) -> Tuning:
    return Tuning(**{answer.field: answer.chosen for answer in answers})


def sizes(limits: Limits, tuning: Tuning) -> dict[str, int]:
    """The fields that concern this device."""
    return {field: getattr(tuning, field) for field in fields_of(limits)}


def told(limits: Limits, tuning: Tuning) -> str:
    """`tokens a tile: 4, work-groups a core: 2`"""
    return ", ".join(f"{WORDS[field]}: {size}" for field, size in sizes(limits, tuning).items())


# Measuring


def measure(backend: DeviceBackend, progress: Progress) -> list[Answer]:
    """Compile all candidates and time them. BackendError: the device has no memory for it, or refuses a kernel."""
    limits = backend.runtime.limits
    answers: list[Answer] = []
    for field in progress(list(fields_of(limits)), TELLS):
        so_far = of(answers)
        given = {n: replace(limits, tuning=replace(so_far, **{field: n})) for n in CANDIDATES[field]}
        default = getattr(untuned(limits.integers), field)
        answers.append(Answer(field, default, in_turns(_timers(backend, given, PRODUCTS[field]))))
    return answers


def in_turns(timers: Mapping[int, Callable[[], float]], clock: Callable[[], float] = perf_counter) -> dict[int, list[float]]:
    """Seconds of each candidate in each turn: at least FEWEST turns, and more while there is time."""
    for timer in timers.values():
        timer()  # compiles
    seconds: dict[int, list[float]] = {n: [] for n in timers}
    began = clock()
    for turn in range(MOST):
        if turn >= FEWEST and clock() - began > SECONDS:
            break
        for n in sorted(timers, reverse=turn % 2 == 1):  # none always comes after the same other
            seconds[n].append(timers[n]())
    return seconds


def _timers(
    backend: DeviceBackend, given: Mapping[int, Limits], products: Sequence[tuple[int, int, int]]
) -> dict[int, Callable[[], float]]:
    """For each candidate what computes all of the products on the device, and tells the seconds that it took."""
    rng = np.random.default_rng(0)
    runtime = backend.runtime
    launches: dict[int, list[Launch]] = {n: [] for n in given}
    weights = {(m, n): _weight(backend, rng, m, n) for m, n in {(m, n) for m, n, _ in products}}
    for m, n, n_tokens in products:
        x, w = backend.upload(rng.standard_normal((n_tokens, n), np.float32)), weights[m, n]
        y = backend.allocate((n_tokens, m), np.float32)
        rooms = [runtime.allocate(size) for size in ROOMS[ops.matmul.name](runtime.limits, x.shape, w.shape, y.shape)]
        for candidate, limits in given.items():
            launches[candidate] += TABLE[ops.matmul.name](limits, x, w, y, rooms=rooms)

    def timer(run: Callable[[], None]) -> Callable[[], float]:
        def timed() -> float:
            began = perf_counter()
            run()
            runtime.finish()
            return perf_counter() - began  # by the host's clock: how soon the next kernel begins counts as well

        return timed

    return {candidate: timer(runtime.prepare(todo)) for candidate, todo in launches.items()}


def _weight(backend: DeviceBackend, rng: np.random.Generator, m: int, n: int) -> Any:
    """Random, but with a model's scales: a number that is too small for its type takes a hundred times as long."""
    blocks = rng.integers(0, 256, (m, n // FORMAT.block_size, FORMAT.block_bytes), np.uint8)
    blocks[..., :2] = rng.uniform(0.005, 0.02, (*blocks.shape[:2], 1)).astype("<f2").view(np.uint8)
    tensor = Tensor("tuning", (m, n), FORMAT, blocks.reshape(m, -1))
    return backend.bring(tensor, backend.form(tensor, "weight", ops.matmul))


# Keeping


def key(limits: Limits) -> str:
    """What a device is known by. Its number of cores is the one it may use."""
    return f"{limits.name}, {limits.driver}, {limits.cores} cores, kernels for {limits.integers or limits.kind}"


def kept(file: Path, limits: Limits) -> Tuning | None:
    """What was found for this device with these kernels; None if nothing was, or the file is damaged."""
    entry = _entries(file).get(key(limits))
    wanted = fields_of(limits)
    if not isinstance(entry, dict) or entry.keys() != {"kernels", *wanted} or entry["kernels"] != _mark():
        return None
    found = {field: entry[field] for field in wanted}
    if any(type(n) is not int or n not in CANDIDATES[field] for field, n in found.items()):
        return None
    return Tuning(**found) if found else None


def keep(file: Path, limits: Limits, tuning: Tuning) -> None:
    """Beside what is kept for other devices. Without a word nothing is kept where the disk is full or not to be written.

    The file is replaced as a whole. Of two programs that do so at once, the second may undo what the first has added: then
    that is measured again.
    """
    entries = {**_entries(file), key(limits): {"kernels": _mark(), **sizes(limits, tuning)}}
    text = json.dumps(entries, indent=2) + "\n"
    started = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, started):
            started.write_text(text, "utf-8")


def _entries(file: Path) -> dict[str, Any]:
    """By device; none if there is no file, or it is damaged."""
    try:
        entries = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


@lru_cache
def _mark() -> str:
    """Of all that the answers depend on: the kernels, and what was asked."""
    texts = [source(language, file, {}) for language in ("opencl", "cuda") for file in PROGRAMS]
    return hashlib.sha256(ascii((texts, CANDIDATES, PRODUCTS)).encode()).hexdigest()[:12]
