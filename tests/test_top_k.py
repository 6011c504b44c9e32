"""The largest logits, found where they lie: the op on every kind of device, and generation that asks for no more than it needs.

What is right is told by Python's `sorted`, on keys that say what comes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ops
from backends import Options
from backends.numpy import Numpy
from ops.errors import ContextFullError, OptionError, ShapeError, TinyLlamaError
from tinyllama import Model, Sampling, generation
from tinyllama.context import Context
from tinyllama.sampling import Sampler

TINY = Path(__file__).parent / "data" / "tiny" / "llama-mha.gguf"
# Numbers below, at and beside the 256 and 1024 of a work-group. More than 16 lists are merged twice: 4096 numbers on a GPU, and
# 40,000 on a CPU of 20 cores. One is sought, few, as many as a span has columns, more, all.
SIZES = [
    (1, 1, 1), (2, 7, 7), (3, 256, 5), (1, 257, 257), (2, 1024, 1), (1, 1025, 40), (3, 3000, 128), (1, 4097, 256),
    (1, 5000, 300), (2, 5000, 5000), (1, 40_000, 40), (1, 40_000, 1),
]  # fmt: skip


def rows(kind: str, n_rows: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n_rows, n)).astype(np.float32)
    if kind == "few values":
        x = np.round(x)
    elif kind == "all equal":
        x[:] = 0.5
    elif kind == "ascending":
        x = np.sort(x, axis=1)
    elif kind == "masked":  # most are -inf, and there may be fewer others than are asked for
        x = np.where(rng.random((n_rows, n)) < 0.97, -np.inf, x).astype(np.float32)
    elif kind == "no numbers":
        x[:, rng.integers(n, size=3)] = np.nan
        x[:, rng.integers(n, size=2)] = -np.nan
        x[:, rng.integers(n, size=2)] = np.inf
    elif kind == "zeros of both signs":
        x = np.copysign(np.zeros_like(x), x)
    return x


KINDS = ["distinct", "few values", "all equal", "ascending", "masked", "no numbers", "zeros of both signs"]


def largest(row: np.ndarray, k: int) -> list[int]:
    """NaN first, then by size, then by place."""
    keys = [(0, 0.0, i) if math.isnan(number) else (1, -number, i) for i, number in enumerate(row.tolist())]
    return [i for _, _, i in sorted(keys)[:k]]


def check(x: np.ndarray, values: np.ndarray, ids: np.ndarray, k: int) -> None:
    assert ids.dtype.kind == "i"
    assert ids.tolist() == [largest(row, k) for row in x]
    assert values.dtype == x.dtype
    np.testing.assert_array_equal(values, np.take_along_axis(x, ids.astype(np.int64), axis=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_formula(kind, dtype):
    for n_rows, n, k in SIZES:
        x = rows(kind, n_rows, n).astype(dtype)
        check(x, *ops.top_k(x, k=k), k)


def test_more_than_there_are_is_an_error():
    graph = ops.Graph()
    x = graph.leaf("x", ("T", 5))
    assert [v.shape for v in ops.top_k(x, k=5)] == [("T", 5), ("T", 5)]
    with pytest.raises(ShapeError, match="top_k: needs k <= n, but k=6, n=5"):
        ops.top_k(x, k=6)


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest):
    pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")
    from backends.opencl import OpenCL

    return OpenCL(Options(device_features=request.param))


@pytest.fixture(params=[{"cores": 1}, {"cores": 20}, {"group_size": 20}, {"group_size": 1}], ids=str)
def limited(request: pytest.FixtureRequest, device) -> Iterator[None]:
    """A device of so many cores, or with room for so few work-items in a group."""
    asked = device.runtime.limits
    device.runtime.limits = replace(asked, **request.param)
    yield
    device.runtime.limits = asked


@pytest.mark.parametrize("kind", KINDS)
def test_kernels(device, limited, kind):
    for n_rows, n, k in SIZES:
        x = rows(kind, n_rows, n)
        values, ids = device.kernel_of(ops.top_k)(device.upload(x), k=k)
        check(x, device.download(values), device.download(ids), k)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_whose_rows_differ_from_step_to_step(device, kind):
    graph = ops.Graph()
    graph.outputs = [*ops.top_k(graph.leaf("x", ("T", 3000)), k=40)]
    plan = device.compile(graph, {}, {"T": 2})
    for n_rows in (1, 2, 5, 1):
        x = rows(kind, n_rows, 3000)
        check(x, *map(device.download, plan({"x": x})), 40)


# The engine


def backend(name: str):
    if name == "numpy":
        return Numpy()
    pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")
    from backends.opencl import OpenCL

    return OpenCL(Options(device_features=name.removeprefix("opencl-")))


def split(layers: str) -> dict[str, str]:
    pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")
    return {"layers": layers}


PLACES = ["numpy", "opencl-cpu", "opencl-gpu", "numpy:0,opencl:1,numpy:output", "opencl:0,numpy:1,opencl:output"]


@pytest.fixture(scope="module", params=PLACES)
def model(request: pytest.FixtureRequest) -> Model:
    where = request.param
    return Model.load(TINY, **(split(where) if ":" in where else {"backend": backend(where)}), n_ctx=64)


def test_eval_top_gives_the_largest_of_the_logits_that_eval_gives(model):
    """Prompts longer than a batch, single tokens, another k each time: the buffer with the logits is not always the same."""
    whole, top = model.context(n_batch=5), model.context(n_batch=5)
    n_vocab = model.config.n_vocab
    for tokens, k in [([1, 25, 47, 3, 8, 9, 2], 40), ([11], 40), ([12], 40), ([13, 14], 1), ([15], n_vocab), ([16], 40)]:
        logits, (values, ids) = whole.eval(tokens), top.eval_top(tokens, k)
        assert (values.dtype, ids.dtype, top.n_past) == (np.float32, np.int64, whole.n_past)
        check(logits[None], values[None], ids[None], k)
    kept = values.tolist(), ids.tolist()
    top.eval_top([17], 40)
    assert (values.tolist(), ids.tolist()) == kept  # a later step does not change them


def test_eval_top_leaves_the_context_as_it_was_when_it_fails(model):
    context = model.context()
    context.eval([1, 2])
    for k in (0, model.config.n_vocab + 1, True, 1.0):
        with pytest.raises(OptionError, match=r"k = .* is out of range: it must be a whole number of at least 1"):
            context.eval_top([3], k)
    with pytest.raises(ContextFullError):
        context.eval_top([3] * 63, 1)
    assert context.tokens == [1, 2]


def test_an_observer_sees_the_model_and_not_what_sampling_wants_of_it(model):
    def seen_by(run) -> list[str]:
        calls = []
        run(lambda event: calls.append(event.node.call))
        return calls

    seen = seen_by(lambda observe: model.context().eval_top([1, 25], 3, observe=observe))
    assert seen == seen_by(lambda observe: model.context().eval([1, 25], observe=observe))


def test_warming_up_compiles_what_the_largest_logits_take():
    context = Model.load(TINY, backend=backend("opencl-cpu")).context()
    context.warm_up()
    runtime, built = context.model.placement.output.runtime, []
    inner = runtime._program
    runtime._program = lambda launch: built.append(launch.program) if launch.program not in runtime._programs else inner(launch)
    context.eval_top([1, 2], 40)
    assert built == []


SETTINGS = [
    Sampling(temp=0), Sampling(), Sampling(top_k=3, typical_p=0.5), Sampling(top_k=128, top_p=1, min_p=0, temp=1.5),
    Sampling(top_k=1), Sampling(temp=0, top_k=7, typical_p=0.2), Sampling(repeat_penalty=1.3, repeat_last_n=0),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["distinct", "few values", "all equal", "masked"])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_candidates_are_the_same_to_the_last_bit(sampling, kind):
    for n in (200, 5000):
        (logits,) = 3 * rows(kind, 1, n)
        sampler = Sampler(sampling, n)
        ids = np.array(largest(logits, sampler.n_largest))
        for found, right in zip(sampler.candidates(logits[ids], ids), sampler.candidates(logits), strict=True):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("sampling", SETTINGS[:2], ids=["greedy", "default"])
@pytest.mark.parametrize("damage", [[math.nan], [math.inf], [math.nan, math.inf], [-math.inf] * 64])
def test_logits_that_are_no_numbers_are_the_same_error(sampling, damage):
    logits = np.arange(64, dtype=np.float32)
    logits[: len(damage)] = damage
    sampler = Sampler(sampling, 64)
    ids = np.array(largest(logits, sampler.n_largest))
    with pytest.raises(TinyLlamaError) as right:
        sampler.sample(logits)
    with pytest.raises(TinyLlamaError) as found:
        sampler.sample(logits[ids], ids)
    assert str(found.value) == str(right.value)


def test_what_the_next_token_depends_on():
    def needs(**settings) -> int:
        return Sampler(Sampling(**settings), 1000).n_largest

    assert [needs(), needs(top_k=7), needs(temp=0), needs(temp=-1, top_k=0)] == [40, 7, 1, 1]
    assert needs(typical_p=0.5, top_p=1, min_p=0) == 40  # these come after top-k
    assert [needs(top_k=0), needs(top_k=-1), needs(top_k=1000), needs(top_k=999)] == [0, 0, 0, 999]
    assert [needs(temp=temp, logit_bias={3: 1.0}) for temp in (0, 1)] == [0, 0]
    for penalty in ("presence_penalty", "frequency_penalty", "repeat_penalty"):
        assert [needs(temp=temp, **{penalty: 1.5}) for temp in (0, 1)] == [0, 0]
        assert needs(**{penalty: 1.5}, repeat_last_n=0) == 40  # looks at no token
    assert [needs(mirostat=2), needs(mirostat=2, temp=0)] == [0, 1]  # temperature 0 comes first


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Of each step how many of the largest logits it was asked for; 0: for all."""
    counts: list[int] = []
    inner = Context._step
    monkeypatch.setattr(Context, "_step", lambda self, *args: counts.append(args[-1]) or inner(self, *args))
    return counts


def test_generation_with_and_without_it_says_the_same(model, asked, monkeypatch):
    def said(**settings) -> list[int]:
        run = model.generate("Hello", n_predict=6, ignore_eos=True, **settings)
        list(run)
        return run.tokens

    settings = [{"seed": seed, "temp": 1.2} for seed in range(50)] + [{"temp": 0}, {"seed": 1, "top_k": 5, "typical_p": 0.7}]
    reduced = [said(**s) for s in settings]
    assert {*asked} == {40, 1, 5}
    asked.clear()
    monkeypatch.setattr(generation, "MOST", 0)
    assert [said(**s) for s in settings] == reduced
    assert {*asked} == {0}
    assert len({*map(tuple, reduced)}) > 40  # seeds do differ


def test_generation_asks_for_all_where_they_are_needed(model, asked):
    for settings in ({"top_k": 0}, {"top_k": 129}, {"repeat_penalty": 1.1}, {"logit_bias": {5: 1.0}}, {"mirostat": 2}):
        list(model.generate("Hello", n_predict=2, seed=1, **settings))
    assert {*asked} == {0}
