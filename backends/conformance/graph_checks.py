"""Whole graphs: a decoder layer in steps of different lengths, with a cache that grows and is rewound, fused and not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.blocks import FORMATS

from ..base import Backend, Event
from .arrays import poisoned
from .check import Draws, check
from .decoder import OPS_USED, Decoder, evaluate

Array = NDArray[Any]
Buffer = Any
# Some 20 ops after each other, of up to 512 products each. numpy's pairwise sums came to 2e-11 in 20,000 comparisons; a plain
# loop's are some five times less accurate, in the square 25. With caches in float16 a number that lies between two neighbours
# is rounded to the other one, 5e-4 away, if it was computed in float32: 1e-7 came up.
LIMITS = {"float32": 2e-9, "float16": 2e-6}
# x rounded to 8 bits: each product's NMSE is some 3e-5 (see rounding.py), 2e-4 for rows with one large number; scores below 4
# are off by 1% then, and so is softmax. In a layer whose rows are a single block, with large minima, little cancels: 0.04
# came up there in 1,700 comparisons, 1e-4 where rows are longer. A value that another step left behind is 1.
ROUNDED = 0.1
PROGRAMS = ((1,), (1, 1, 1), (3, 1, 1, 2), (5, 1, 7), (33, 1, 1, 17), (65, 1), (2, 130, 1), (16, 5, 1, 2))  # T, step by step
_unfused: WeakKeyDictionary[Backend, Backend] = WeakKeyDictionary()


@st.composite
def decoders(draw: st.DrawFn) -> Decoder:
    """n, ff and h * d are multiples of the block."""
    kind = draw(st.sampled_from(list(FORMATS)))
    block = FORMATS[kind].block_size
    k = draw(st.sampled_from((1, 2, 3)))
    h = k * draw(st.sampled_from((1, 2, 3, 4)))
    d = draw(st.sampled_from((64, 2, 6, 32, 80, 128)))
    if block > 1:
        d = max(32, d // 32 * 32)
        h = block // 32 if block > 32 else h
        k = draw(st.sampled_from([k for k in range(1, h + 1) if h % k == 0]))
        sizes: tuple[int, ...] = (block, 2 * block)
    else:
        sizes = (32, 1, 5, 33, 64, 96, 127, 130)
    n, ff = draw(st.sampled_from(sizes)), draw(st.sampled_from(sizes))
    return Decoder(n, h, k, d, ff, draw(st.sampled_from((11, 33, 130))), draw(st.booleans()), kind, draw(st.integers(0, 2**16)))


class Run:
    """A decoder's steps on a backend, beside the float64 formulas."""

    def __init__(self, backend: Backend, decoder: Decoder, kv: str, places: int, sizes: dict[str, int] | None) -> None:
        self.backend, self.decoder, self.kv = backend, decoder, kv
        self.graph, tensors = decoder.graph(), decoder.weights()
        self.truth: dict[str, Any] = {name: x.dequantize().astype(np.float64) for name, x in tensors.items()}
        self.caches = {name: self._cache(places) for name in ("k_cache", "v_cache")}
        for name in self.caches:
            self.truth[name] = np.zeros((places, decoder.k, decoder.d), np.float16 if kv == "float16" else np.float64)
        self.plan = backend.compile(self.graph, tensors | self.caches, sizes)
        self.rng = np.random.default_rng(decoder.seed)
        self.position = 0
        self.told = f"{decoder} with caches in {kv}"

    def _cache(self, places: int) -> Buffer:
        """As a context makes it, but what is not written yet is poison."""
        shape = (places, self.decoder.k, self.decoder.d)
        buffer = self.backend.allocate(shape, np.dtype(self.kv))
        self.backend.overwrite(buffer, poisoned(shape, self.kv, places))
        return buffer

    def grow(self, places: int) -> None:
        """More places in every cache; the new ones are zeros."""
        for name, cache in self.caches.items():
            if places > len(self.truth[name]):
                self.caches[name] = self.backend.enlarge(cache, places)
                self.plan.rebind(name, self.caches[name])
                old = self.truth[name]
                self.truth[name] = np.concatenate([old, np.zeros((places - len(old), *old.shape[1:]), old.dtype)])

    def inputs(self, n_tokens: int) -> dict[str, Array]:
        n_out = int(self.rng.integers(1, min(n_tokens, 4) + 1))
        return {
            "tokens": self.rng.integers(0, self.decoder.vocabulary, n_tokens),
            "positions": self.position + np.arange(n_tokens),
            "out_ids": np.sort(self.rng.integers(0, n_tokens, n_out)),
        }

    def step(self, n_tokens: int, observe: Callable[[Event], None] | None = None) -> tuple[list[Array], dict[str, Array]]:
        """Outputs as downloaded, and the true value of every node of the graph."""
        inputs = self.inputs(n_tokens)
        given = {name: x.copy() for name, x in inputs.items()}
        with np.errstate(all="ignore"):
            results = self.plan(given, observe) if observe else self.plan(given)
        for name, x in given.items():
            assert np.array_equal(x, inputs[name]), f"{self.told}: the step changed its input {name}"
            x[:] = -1  # the step is over: nobody may read this array any more
        outputs = [self.backend.download(buffer) for buffer in results]
        true = evaluate(self.graph, self.truth | inputs)
        self.position += n_tokens
        return outputs, true

    def compare(self, outputs: list[Array], true: dict[str, Array], told: str, limit: float) -> None:
        for value, ours in zip(self.graph.outputs, outputs, strict=True):
            assert_near(ours, true[value.name], limit, f"{self.told}\n{told}: {value.name}")


def assert_near(ours: Array, truth: Array, limit: float, told: str) -> None:
    """NMSE of all, and of each row against the size of a usual row."""
    assert ours.shape == truth.shape, f"{told} has the shape {list(ours.shape)}, expected {list(truth.shape)}"
    same = ours == truth  # -inf too, which a mask writes
    rows = np.square(np.where(same, 0, ours) - np.where(same, 0, truth.astype(np.float64))).reshape(len(truth), -1).mean(axis=1)
    size = np.square(truth).mean() + 1e-30
    worst = int(np.argmax(np.where(np.isnan(rows), np.inf, rows)))
    said = f"{told} is wrong, worst in row {worst} of {len(truth)}: NMSE {np.mean(rows) / size:.2e}, limit {limit:.0e}"
    assert np.mean(rows) <= limit * size, said
    assert rows[worst] <= min(10 * limit, 0.5) * max(size, np.square(truth[worst]).mean()), said


def _run_program(backend: Backend, data: Draws, kv: str, limit: float) -> None:
    decoder = data.draw(decoders(), label="decoder")
    program = data.draw(st.sampled_from(PROGRAMS), label="T of each step")
    grows = data.draw(st.booleans(), label="the cache grows")
    rewound = data.draw(st.booleans(), label="rewound before the last step")
    told_sizes = data.draw(st.booleans(), label="sizes told beforehand")
    total = sum(program)
    sizes = {"T": max(program), "U": min(max(program), 4), "C": total + 3} if told_sizes else None
    run = Run(backend, decoder, kv, program[0] + 1 if grows else total + 3, sizes)
    kept: list[tuple[list[Array], list[Array]]] = []
    for i, n_tokens in enumerate(program):
        if rewound and i == len(program) - 1:
            run.position = run.position // 2
        run.grow(run.position + n_tokens + (i % 2))
        outputs, true = run.step(n_tokens)
        run.compare(outputs, true, f"steps of T = {program}, step {i}", limit)
        for now, then in kept:
            assert all(np.array_equal(a, b) for a, b in zip(now, then, strict=True)), (
                f"{run.told}\nsteps of T = {program}: step {i} changed an array that was downloaded after an earlier step"
            )
        kept.append((outputs, [x.copy() for x in outputs]))


@check("graph-layer-f32", *OPS_USED)
def layer_f32(backend: Backend, data: Draws) -> None:
    """A decoder layer gives the float64 values at each step: prefill, decode, prefill, with a cache that grows, and rewound.

    What a step leaves behind (buffers, arguments, masks, rows of the cache) may not reach the next one. Places of the cache
    that are not written hold NaN or the largest number.
    """
    _run_program(backend, data, "float32", LIMITS["float32"])


@check("graph-rounded", *OPS_USED, dtype="f16", as_it_is=True)
def rounded(backend: Backend, data: Draws) -> None:
    """And with activations as the backend takes them: if it rounds them to 8 bits, a layer is as near as that allows."""
    _run_program(backend, data, "float16", ROUNDED)


@check("graph-layer-f16", *OPS_USED, dtype="f16")
def layer_f16(backend: Backend, data: Draws) -> None:
    """The same with caches in float16: what is written is rounded to it, and everything else is not."""
    _run_program(backend, data, "float16", LIMITS["float16"])


@check("graph-unfused", *(op for op in OPS_USED if op not in ("attention", "swiglu")), "attention_scores", "causal_mask",
       "softmax", "attention_mix", "silu", "mul")  # fmt: skip
def unfused(backend: Backend, data: Draws) -> None:
    """With Options(fuse=False) the primitive ops run one by one, and give the same: fusion changes no meaning."""
    if backend not in _unfused:
        _unfused[backend] = type(backend)(replace(backend.options, fuse=False))
    twin = _unfused[backend]
    assert not [n.op.name for n in twin.fused(Decoder(8, 2, 1, 4, 8).graph()).nodes if n.op.fused], "fused against fuse=False"
    _run_program(twin, data, "float32", LIMITS["float32"])


@check("graph-observed", *OPS_USED)
def observed(backend: Backend, data: Draws) -> None:
    """An observer is told of every node, in order, with its outputs; what it sees is right, and the results stay the same."""
    decoder = data.draw(decoders(), label="decoder")
    n_tokens = data.draw(st.sampled_from((1, 2, 5, 33)), label="T")
    run = Run(backend, decoder, "float32", n_tokens + 4, None)
    names = [v.name for n in backend.fused(run.graph).nodes for v in n.outputs]
    seen: list[str] = []
    outputs: dict[str, Array] = {}

    def observe(event: Event) -> None:
        for value, output in zip(event.node.outputs, event.outputs, strict=True):
            seen.append(value.name)
            outputs[value.name] = np.array(backend.download(output))
        name = event.node.output.name
        assert event.seconds >= 0, f"{name} took {event.seconds} s"
        assert event.on_host == (backend.kernel_of(event.node.op) is None), f"{name}: on_host is {event.on_host}"
        assert event.cost.bytes >= 0, f"{name}: moves {event.cost.bytes} bytes"
        assert event.backend is backend, f"{name}: told of another backend"

    for T in (n_tokens, 1):
        seen.clear()
        results, true = run.step(T, observe)
        assert seen == names, f"{run.told}: an observer saw {seen}, expected {names}"
        run.compare(results, true, f"observed, T = {T}", LIMITS["float32"])
        for name, ours in outputs.items():
            assert_near(ours, true[name], LIMITS["float32"], f"{run.told}\nobserved node {name}")
