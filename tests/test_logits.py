"""Logits of whole models against PyTorch's: tests/golden/ makes the files, and says how.

Errors are max |a - b| / max |b| over all logits compared. Observed with the numpy backend, in float32: up to 2e-6 for
the tiny models (torch's own float32 is off by 1.5e-6), 3e-6 for SmolLM2's 30 layers. The smallest mistake tried, an
attention scale wrong by 0.1 %, moves the tiny models' logits by 7e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.tensor import dense
from tinyllama import Model
from tinyllama.architectures import architecture
from tinyllama.models import MODELS

DATA = Path(__file__).parent / "data"
TINY = sorted(path.stem for path in (DATA / "tiny").glob("*.gguf"))
FLOAT32 = 1e-5  # two layers: five times the rounding observed, a seventieth of the smallest mistake tried
FLOAT32_30_LAYERS = 3e-5  # ten times the rounding observed
FLOAT64 = 2e-6  # transformers' float64 models take rope's angles and RMSNorm's means in float32 still: observed 1e-6

Golden = Mapping[str, NDArray[Any]]


def error(a: NDArray[Any], b: NDArray[Any]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


@cache
def load(name: str, fuse: bool = True) -> Model:
    return Model.load(DATA / "tiny" / f"{name}.gguf", backend="numpy", fuse=fuse)


@cache
def golden_of(name: str) -> Golden:
    return dict(np.load(DATA / "tiny" / f"{name}.npz"))


@pytest.fixture(params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run_eagerly(model: Model, tokens: NDArray[Any], dtype: type) -> NDArray[Any]:
    """The architecture's function on plain arrays: no graph, no backend."""
    weights = {key: dense(leaf, dtype) for key, leaf in model.leaves.items()}
    caches: dict[str, NDArray[Any]] = {
        key: np.zeros((len(tokens), *shape), dtype) for key, (_, shape) in model.caches().items()
    }
    every = np.arange(len(tokens))
    logits: NDArray[Any] = architecture(model.config.arch).equations(
        model.config, weights, lambda kind, i: caches[f"cache_{kind}_l{i}"], tokens, positions=every, out_ids=every
    )
    return logits


def test_the_golden_files_are_there() -> None:
    """Else every test below would pass by testing nothing."""
    llamas = {f"llama-{kind}" for kind in ("mha", "gqa-tied", "bias", "linear", "llama3", "head-dim", "q", "1", "2", "3")}
    assert set(TINY) == llamas | {"qwen2", "mistral", "falcon-7b", "falcon-40b", "falcon-180b"}


@pytest.mark.parametrize("fuse", [True, False])
def test_every_position_agrees_with_pytorch(name: str, fuse: bool) -> None:
    model, golden = load(name, fuse=fuse), golden_of(name)
    for i in range(4):
        logits = model.context().eval(golden[f"prompt_{i}"].tolist(), logits="all")
        assert logits.dtype == np.float32
        assert error(logits, golden[f"logits_{i}"]) < FLOAT32


def test_last_is_the_last_of_all(name: str) -> None:
    model, golden = load(name), golden_of(name)
    for i in range(4):
        assert error(model.context().eval(golden[f"prompt_{i}"].tolist()), golden[f"logits_{i}"][-1]) < FLOAT32


def test_equations_on_float64_arrays_agree_with_pytorch(name: str) -> None:
    golden = golden_of(name)
    assert error(run_eagerly(load(name), golden["prompt_3"], np.float64), golden["logits_3"]) < FLOAT64


def test_equations_on_arrays_agree_with_the_graph(name: str) -> None:
    """The same formulas in the same float32: what differs is the order of sums, in BLAS and in the fused kernels."""
    model, golden = load(name), golden_of(name)
    by_graph = model.context().eval(golden["prompt_3"].tolist(), logits="all")
    assert error(run_eagerly(model, golden["prompt_3"], np.float32), by_graph) < FLOAT32


@pytest.mark.parametrize("n_batch", [1, 5, 16, 47])
def test_a_prompt_in_batches_gives_the_same_logits(name: str, n_batch: int) -> None:
    """BLAS adds in another order when a matrix has other sizes: equal up to float32's rounding, not bit by bit."""
    model, golden = load(name), golden_of(name)
    tokens = golden["prompt_3"].tolist()
    at_once = model.context().eval(tokens, logits="all")
    context = model.context(n_batch=n_batch)
    assert error(context.eval(tokens, logits="all"), at_once) < FLOAT32
    assert context.n_past == len(tokens)


def test_one_token_after_the_other_agrees_with_pytorch(name: str) -> None:
    model, golden = load(name), golden_of(name)
    context = model.context()
    steps = [context.eval([token]) for token in golden["prompt_3"].tolist()]
    assert error(np.stack(steps), golden["logits_3"]) < FLOAT32


def test_contexts_do_not_disturb_each_other(name: str) -> None:
    """Two prompts read in turns, a few tokens at a time, by two contexts of one model."""
    model, golden = load(name), golden_of(name)
    contexts = [model.context(), model.context()]
    parts: list[list[NDArray[Any]]] = [[], []]
    for start in range(0, 48, 4):
        for context, part, i in zip(contexts, parts, (2, 3), strict=True):
            if tokens := golden[f"prompt_{i}"][start : start + 4].tolist():
                part.append(context.eval(tokens, logits="all"))
    assert error(np.concatenate(parts[0]), golden["logits_2"]) < FLOAT32
    assert error(np.concatenate(parts[1]), golden["logits_3"]) < FLOAT32


TURNS = st.tuples(st.integers(1, 16), st.integers(1, 48), st.integers(1, 48))


@given(st.lists(TURNS, min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_after_a_rewind_it_goes_on_as_if_nothing_had_been(turns: list[tuple[int, int, int]]) -> None:
    """Each turn reads tokens that are to be forgotten, goes back by more than those, and reads on in the prompt."""
    golden = golden_of("llama-gqa-tied")
    prompt, other = golden["prompt_3"].tolist(), golden["prompt_3"][::-1].tolist()
    context = load("llama-gqa-tied").context()
    for n_wrong, back, n_right in turns:
        here = max(0, context.n_past - back)
        context.eval(other[:n_wrong])
        context.rewind(here)
        assert context.n_past == here
        logits = context.eval(prompt[here : here + n_right], logits="all")
        assert error(logits, golden["logits_3"][here : here + n_right]) < FLOAT32


def test_a_cache_that_grows_keeps_what_it_holds() -> None:
    """400 tokens at once find their places allocated; in steps of 37 the cache grows under them, at 256 places."""
    model = load("llama-gqa-tied")
    tokens = np.random.default_rng(0).integers(3, model.config.n_vocab, 400).tolist()
    at_once = model.context(n_ctx=400).eval(tokens, logits="all")
    assert error(model.context(n_ctx=400, n_batch=37).eval(tokens, logits="all"), at_once) < FLOAT32


def test_greedy_generation_agrees_with_pytorch(name: str) -> None:
    """The best two logits are at least 0.005 apart at every step, forty times the error allowed above."""
    golden = golden_of(name)
    generation = load(name).generate(golden["prompt_2"].tolist(), n_predict=24, temp=0, ignore_eos=True)
    for _ in generation:
        pass
    assert golden["greedy_gap"].min() > 0.005
    assert generation.tokens == golden["greedy"].tolist()


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Model:
    return Model.load(smollm2, backend="numpy")


REAL = dict(np.load(DATA / "smollm2_logits.npz"))
PROMPTS = REAL["names"].tolist()


def sure(gap: NDArray[Any]) -> int:
    """Greedy steps that must agree: those before the first where the best two logits are too close to tell apart."""
    close = np.flatnonzero(gap < 0.01)
    return int(close[0]) if len(close) else len(gap)


def test_the_real_model_is_the_one_that_pytorch_ran() -> None:
    assert str(REAL["sha256"]) == MODELS["smollm2"].sha256


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_agrees_with_pytorch(real: Model, prompt: str) -> None:
    """Logits at every position, and at every position of PyTorch's greedy continuation its next token on top."""
    golden = {key.split("/")[1]: array for key, array in REAL.items() if key.startswith(f"{prompt}/")}
    tokens, greedy = golden["tokens"].tolist(), golden["greedy"].tolist()
    logits = real.context().eval(tokens + greedy[:-1], logits="all")
    n, largest = len(tokens), golden["max_abs"].max()
    assert np.abs(logits[:n, REAL["sample_ids"]] - golden["sample"]).max() / largest < FLOAT32_30_LAYERS
    top = np.take_along_axis(logits[:n], golden["top_ids"], axis=-1)
    assert np.abs(top - golden["top"]).max() / largest < FLOAT32_30_LAYERS
    assert np.abs(np.abs(logits[:n]).max(axis=-1) - golden["max_abs"]).max() / largest < FLOAT32_30_LAYERS
    assert error(logits[n - 1], golden["last"]) < FLOAT32_30_LAYERS
    n_sure = sure(golden["greedy_gap"])
    assert logits[n - 1 :].argmax(axis=-1)[:n_sure].tolist() == greedy[:n_sure]


def test_smollm2_generates_what_pytorch_generates(real: Model) -> None:
    n_sure = min(12, sure(REAL["chat/greedy_gap"]))  # the test above has gone through all 64
    generation = real.generate(REAL["chat/tokens"].tolist(), n_predict=n_sure, temp=0, ignore_eos=True)
    for _ in generation:
        pass
    assert generation.tokens == REAL["chat/greedy"].tolist()[:n_sure]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_tokenizes_as_its_own_tokenizer(real: Model, prompt: str) -> None:
    assert real.tokenize(str(REAL[f"{prompt}/text"])) == REAL[f"{prompt}/tokens"].tolist()
