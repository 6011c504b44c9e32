"""Sequences scored one after the other: as if each were alone, but what some of them begin with alike is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyllama import Model
from tinyllama.evaluation.perplexity import log_softmax_at
from tinyllama.evaluation.scoring import ROWS, Scorer

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model.load(DATA / "tiny" / "llama-gqa-tied.gguf", backend="numpy")


def score_alone(model: Model, tokens: list[int], n: int) -> tuple[float, bool]:
    """Without any sharing: the whole sequence in a context of its own."""
    logits = model.context(n_ctx=400).eval(tokens[:-1], logits="all")[-n:]
    targets = np.array(tokens[-n:])
    return float(log_softmax_at(logits, targets).sum()), bool((logits.argmax(axis=-1) == targets).all())


def test_sequences_that_begin_alike_score_as_if_alone(tiny):
    """Sorted and unsorted, with beginnings shared in every way; the same logits in batches of other lengths: 1e-5 of 8 each."""
    rng = np.random.default_rng(1)
    base = rng.integers(3, tiny.config.n_vocab, 30).tolist()
    requests = []
    for _ in range(60):
        kept = int(rng.integers(1, 30))
        tokens = base[:kept] + rng.integers(3, 9, int(rng.integers(1, 12))).tolist()
        requests.append((tokens, int(rng.integers(1, len(tokens)))))
    for order in (sorted(requests), requests):
        scorer = Scorer(tiny.context())
        for tokens, n in order:
            total, greedy = scorer.score(tokens, n)
            expected, expected_greedy = score_alone(tiny, tokens, n)
            assert total == pytest.approx(expected, abs=2e-4 * n)
            assert greedy == expected_greedy


def test_a_shared_beginning_is_read_once(tiny, monkeypatch):
    """The tokens read are the nodes of the tree that the sequences make, without its leaves: these are only predicted."""
    context = tiny.context(n_ctx=400)
    read, evaluate = [], context.eval

    def counted(tokens: list[int], logits: Literal["last", "all"] = "last") -> NDArray[np.float32]:
        read.append(len(tokens))
        return evaluate(tokens, logits)

    monkeypatch.setattr(context, "eval", counted)
    scorer, prompt = Scorer(context), list(range(10, 60))
    for answer in (3, 4, 5, 6):  # one row of logits answers all four
        scorer.score([*prompt, answer], 1)
    assert read == [len(prompt)]
    rng = np.random.default_rng(3)
    other = rng.integers(3, 99, 2 * ROWS).tolist()
    requests = [
        (start, rng.integers(3, 9, n).tolist()) for start in (prompt, prompt[:30], other) for n in (1, 2, 3, 3, 4, 5, 6)
    ]
    sequences = sorted((start + continuation, len(continuation)) for start, continuation in requests)
    context.rewind(0)
    read.clear()
    for tokens, n in sequences:
        scorer.score(tokens, n)
    assert sum(read) == len({tuple(tokens[:i]) for tokens, _ in sequences for i in range(1, len(tokens))})


def test_a_continuation_longer_than_the_rows_kept(tiny):
    scorer, many = Scorer(tiny.context(n_ctx=400)), np.random.default_rng(2).integers(3, 99, 2 * ROWS + 7).tolist()
    for tokens in (many, [*many[:-3], 5, 6, 7]):
        expected, _ = score_alone(tiny, tokens, len(tokens) - 1)
        assert scorer.score(tokens, len(tokens) - 1)[0] == pytest.approx(expected, rel=1e-5)  # a relative 1e-6 each, and more
