"""`bench --profile`: what ops cost beside the formulas worked out here, and what a roofline makes of given times."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from pretend import Pretend

import backends.plan
import ops
from backends import Options
from backends.base import Event
from backends.numpy import Numpy
from ops.graph import Graph
from ops.tensor import Tensor
from tinyllama import Model
from tinyllama.benchmark import Case, run_case
from tinyllama.cli.bench import phases
from tinyllama.cli.main import main
from tinyllama.peak import Peak, measure_peak
from tinyllama.profile import Profile, bound

TINY = Path(__file__).parent / "data" / "tiny"
EACH = 2e-6  # seconds that every op is said to take


def observed(model: Model, case: Case, observe) -> None:
    context = model.context(n_ctx=case.n_tokens, n_batch=8)
    run_case(context, case, lambda event: observe(replace(event, seconds=EACH)))


def columns(table: str, op: str) -> list[str]:
    return next(line.split() for line in table.splitlines() if line.startswith(f"{op} "))


# The table


@pytest.mark.parametrize(
    ("compute", "memory", "told"),
    [(0.7, 0.3, "compute"), (0.2, 0.1, "compute"), (0.3, 0.7, "memory"), (0, 2, "memory"), (0.19, 0.1, "neither"), (0, 0, "")],
)
def test_the_nearer_peak_is_the_bound(compute, memory, told):
    assert bound(compute, memory) == told


def test_generation_reads_its_weights_and_its_cache():
    """LLaMA with two layers on numpy, which multiplies in float32: four tokens after five others."""
    path = TINY / "llama-gqa-tied.gguf"
    model = Model.load(path, backend="numpy")
    profile = Profile(model, {model.backend: Peak(floats=1e9, integers=None, bytes=4e9)})
    observed(model, Case(0, 4, 5), profile)
    table = profile.table("tg4 @ d5", "decode", 4, 4e-4)

    matrices = sum(int(np.prod(t.shape)) for t in gguf.GGUFReader(path).tensors if len(t.shape) == 2)  # tied: the output too
    streamed = 4 * (matrices + 48)  # and a row of the table of embeddings
    streamed += 2 * 2 * 4 * 16 * np.mean([6, 7, 8, 9])  # keys and values of two layers, two heads of eight float32 each
    rate = streamed / 1e-4 / 1e9
    assert (
        f"decode: {streamed / 1e6:.1f} MB a token at 10000 tokens/s = {rate:.1f} GB/s, {rate / 4:.0%} of the 4.0 GB/s measured"
    ) in table
    row = columns(table, "matmul")
    seconds = 4 * 15 * EACH
    flops, moved = 4 * 2 * matrices, 4 * 4 * (matrices + 2 * (6 * 48 + 64) + 48 + 2 * (3 * 48 + 2 * 16 + 2 * 64) + 304)
    assert row == [
        "matmul", "kernel", "float", "60", "0.12", f"{seconds / 4e-4:.1%}", f"{flops / seconds / 1e9:.2f}",
        f"{flops / seconds / 1e9:.1%}", f"{moved / seconds / 1e9:.2f}", f"{moved / seconds / 4e9:.1%}", "compute",
    ]  # fmt: skip
    assert columns(table, "embedding")[:4] == ["embedding", "kernel", "4", "0.01"]  # computes nothing, so in nothing
    ops_seconds = EACH * sum(n for op, n in model.coverage().kernel.items()) * 4
    assert columns(table, "dispatch")[1:] == [f"{(4e-4 - ops_seconds) * 1e3:.2f}", f"{1 - ops_seconds / 4e-4:.1%}"]


def test_ops_that_take_longer_than_the_run_leave_nothing_to_dispatch():
    """As numpy's do, whose long prompts run on several threads if nobody observes."""
    model = Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy")
    profile = Profile(model, {model.backend: Peak(floats=1e9, integers=None, bytes=4e9)})
    observed(model, Case(8, 0), profile)
    table = profile.table("pp8", "prefill", 8, 1e-6)
    assert columns(table, "dispatch") == ["dispatch", "0.00", "0.0%"]
    shares = [float(line.split("%")[0].split()[-1]) for line in table.splitlines() if re.search(r"^\w+ +kernel ", line)]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))  # each is rounded to a tenth


def test_each_amount_counts_with_its_own_peak():
    """Two backends and two kinds of arithmetic: the time at best is the sum of the times at best."""
    model = Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy")
    first, second = Numpy(), Pretend()
    profile = Profile(model, {first: Peak(1e9, 4e9, bytes=1e9), second: Peak(2e9, None, bytes=4e9)})
    observed(model, Case(8, 0), profile)
    ((kind, row),) = ((k, r) for k, r in profile.rows.items() if k.op == "matmul")
    row.operations, row.streamed = 1e6, 1e6
    profile.rows = {
        replace(kind, backend=first): row,
        replace(kind, backend=first, arithmetic="int8"): replace(row, operations=2e6),
        replace(kind, backend=second): row,
    }
    best = (1e6 / 1e9) + (2e6 / 4e9) + (1e6 / 2e9)  # 2 ms for 4 million operations
    table = profile.table("pp8", "prefill", 8, 4 * best)
    assert "prefill: 0.00 GOP a token at 1000 tokens/s = 0.5 GOP/s, 25% of the 2.0 GOP/s measured" in table
    assert re.search(r"^matmul +pretend +kernel float ", table, re.MULTILINE)
    table = profile.table("tg8", "decode", 8, 0.0045)  # 1 + 1 + 0.25 ms for 3 MB
    assert "decode: 0.4 MB a token at 1778 tokens/s = 0.7 GB/s, 50% of the 1.3 GB/s measured" in table
    assert "peaks, measured on pretend: 2 GOP/s in float, 4.0 GB/s read once" in table


def test_a_test_of_both_phases_is_profiled_in_two():
    assert phases(Case(4, 2, 3)) == [Case(4, 0, 3), Case(0, 2, 7)]
    assert phases(Case(4, 0, 3)) == [Case(4, 0, 3)]
    assert phases(Case(0, 2, 3)) == [Case(0, 2, 3)]


def test_the_command_prints_a_table_for_each_phase(capsys):
    argv = ["bench", "--backend", "numpy", "-m", str(TINY / "llama-mha.gguf"), "-p", "0", "-n", "0", "-pg", "4,2", "-r", "1"]
    assert main([*argv, "--profile"]) == 0
    out = capsys.readouterr().out
    for told in ("pp4 (prefill): ", "tg2 @ d4 (decode): ", "prefill: ", "decode: ", "GB/s", "dispatch", "peaks, measured: "):
        assert told in out


# Peaks


@pytest.fixture
def a_second_each(monkeypatch) -> None:
    """Every op takes one second by the host's clock."""
    ticks = count()
    monkeypatch.setattr(backends.plan, "perf_counter", lambda: float(next(ticks)))


def test_a_peak_is_what_the_product_did_in_its_time(a_second_each):
    assert measure_peak(Numpy(Options(n_threads=1))) == Peak(
        floats=2 * 512 * 2048 * 2048, integers=None, bytes=4 * (8192 * 4096 + 4096 + 8192)
    )


def test_a_small_device_is_measured_with_what_it_holds(a_second_each):
    """The pretended one has 64 MiB: half of them are 2,048 rows of 4,096 floats."""
    assert measure_peak(Pretend()).bytes == 4 * (2048 * 4096 + 4096 + 2048)


def test_integers_have_a_peak_of_their_own(monkeypatch):
    backend = opencl(integers=True)
    monkeypatch.setattr(type(backend.runtime), "timed", lambda self, run: (run(), self.finish(), 1.0)[-1])
    assert measure_peak(backend) == Peak(
        floats=2 * 512 * 2048 * 2048,
        integers=2 * 512 * 4096 * 2048,
        bytes=32768 * 4096 // 32 * 34 + 4 * (4096 + 32768),  # Q8_0: a float16 and 32 bytes a block. More than F32's in a second
    )


# On a device


def opencl(integers: bool = False):
    pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")
    backend = Model.load(TINY / "llama-q.gguf", backend="opencl").backend
    if integers and not backend.runtime.limits.integers:
        pytest.skip(f"{backend.runtime.limits.name} multiplies no integers")
    return backend


def events_of(backend, case: Case) -> list[tuple[Event, ops.Cost]]:
    model = Model.load(TINY / "llama-q.gguf", backend=backend)
    told: list[tuple[Event, ops.Cost]] = []
    context = model.context(n_ctx=case.n_tokens)
    run_case(context, case, lambda event: told.append((event, event.cost)))  # its buffers are valid now
    return told


def test_ops_count_what_they_read():
    """Panels at their own size, each operand of a fused op once, of a cache in float16 the places in sight, not all it has."""
    T, S, n = 3, 8, 64
    costs = {event.node.op.name: cost for event, cost in reversed(events_of(opencl(integers=True), Case(T, 0, 5)))}
    blocks = {t.name: int(t.n_bytes) for t in gguf.GGUFReader(TINY / "llama-q.gguf").tensors}  # rows are full panels
    q, k, v, o, gate, up = (
        blocks[f"blk.0.{name}.weight"] for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
    )
    assert costs["norm_qkv"].bytes == q + k + v + 4 * (n + T * (n + 64 + 32 + 32))
    assert costs["norm_qkv"].flops == 4 * T * n + 2 * T * n * (64 + 32 + 32)
    assert costs["matmul_add"].bytes == o + 4 * T * (64 + 2 * n)
    assert costs["norm_swiglu"].bytes == gate + up + 4 * (n + T * (n + 256))
    assert costs["attention"].bytes == 2 * 2 * S * 32 + 4 * T * (2 * 64 + 1)  # keys and values; q, y and positions
    assert costs["attention"].flops == 2 * 4 * 2 * 16 * (6 + 7 + 8)  # four heads of 16; what each of the tokens sees
    assert costs["rope_kv_write"].bytes == 2 * 2 * T * 32 + 4 * T * (64 + 32 + 32 + 64 + 1) + 4 * 8  # and eight frequencies


def test_what_computes_in_integers_is_told():
    backend = opencl(integers=True)
    model = Model.load(TINY / "llama-q.gguf", backend=backend)
    profile = Profile(model, {backend: Peak(1e9, 4e9, bytes=1e9)})
    observed(model, Case(4, 0), profile)
    arithmetic = {kind.op: kind.arithmetic for kind in profile.rows}
    assert {op: arithmetic[op] for op in ("norm_qkv", "norm_swiglu", "attention", "embedding", "split_heads")} == {
        "norm_qkv": "int8", "norm_swiglu": "int8", "attention": "float", "embedding": "", "split_heads": "",
    }  # fmt: skip
    row = columns(table := profile.table("pp4", "prefill", 4, 1.0), "norm_qkv")
    assert float(row[7].rstrip("%")) == pytest.approx(100 * float(row[6]) / 4, abs=0.2)  # rounded: 0.005 of 4 GOP/s are 0.1%
    assert "peaks, measured: 4 GOP/s in int8, 1 GOP/s in float, 1.0 GB/s read once" in table


def test_an_ops_time_is_that_of_its_kernels():
    began = perf_counter()
    told = events_of(opencl(), Case(0, 4, 5))
    wall = perf_counter() - began
    assert 0 < sum(event.seconds for event, _ in told) < wall
    launched = [event for event, _ in told if event.node.op not in (ops.split_heads, ops.merge_heads)]
    assert all(event.seconds > 0 for event in launched)
    assert all(event.seconds == 0 for event, _ in told if event not in launched)


def test_an_ops_launches_add_up(monkeypatch):
    """norm_matmul of a weight in float16: the norm, then a product."""
    backend = opencl()
    graph = Graph()
    x, norm, w = graph.leaf("x", ("T", 32)), graph.leaf("norm", (32,)), graph.leaf("w", (32, 32), "weight")
    graph.outputs = [ops.norm_matmul(x, norm, w, eps=1e-5)]
    ones = Tensor("norm", (32,), ops.FORMATS["F32"], np.ones((1, 32), np.float32).view(np.uint8))
    weight = Tensor("w", (32, 32), ops.FORMATS["F16"], np.zeros((32, 64), np.uint8))
    plan = backend.compile(graph, {"norm": ones, "w": weight}, {"T": 3})
    seconds: list[float] = []

    def observe(event: Event) -> None:
        seconds.append(event.seconds)

    starts = count(1000, 1000)  # in ns; each launch takes 2,500

    def enqueue(*args):
        start = next(starts)
        return SimpleNamespace(profile=SimpleNamespace(start=start, end=start + 2500))

    inputs = {"x": np.ones((3, 32), np.float32)}
    plan(inputs, observe)
    seconds.clear()
    monkeypatch.setattr("pyopencl.enqueue_nd_range_kernel", enqueue)
    plan(inputs, observe)
    assert seconds == [2 * 2500e-9]
