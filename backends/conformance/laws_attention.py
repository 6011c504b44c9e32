"""Laws of attention and what surrounds it: heads, and the cache. None needs a reference to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

import ops

from .apply import Array
from .strategies import SPARE, STARTS, TOKENS
from .trial import Trial, assert_close, assert_same, law

# A score of 5 is off by some roundings of 6e-8 times 5; so is its exponential, as a fraction of itself: 1e-6 of the output.
MIXED = 3e-6
ABOUT_ONE = np.ones(1, np.float32)  # the size of the values, of which an output is a mean, however small


class Attention:
    """What all laws of attention draw: a step of T tokens after some that went before; fused, or in its four parts."""

    def __init__(self, trial: Trial, tokens: tuple[int, ...] = TOKENS, sharpness: tuple[float, ...] = (1.0,)) -> None:
        """sharpness: of scores; in the thousands, where exp of them overflows, few keys have all the weight."""
        self.trial = trial
        self.in_parts = trial.one_of("in parts", (False, True))
        self.past, T = trial.one_of("past", STARTS), trial.one_of("T", tokens)
        self.h, self.k, d = trial.heads(self.past + T)
        self.positions = np.arange(self.past, self.past + T)
        self.scale = d**-0.5
        self.q = trial.array("q", T, self.h, d, magnitudes=sharpness)
        self.keys, self.values = (trial.array(name, self.past + T, self.k, d) for name in ("keys", "values"))

    def __call__(self, q: Array, keys: Array, values: Array) -> Array:
        apply, scale, positions = self.trial.apply, self.scale, self.positions
        if not self.in_parts:
            return apply(ops.attention, q, keys, values, positions, scale=scale)
        kq = apply(ops.causal_mask, apply(ops.attention_scores, q, keys), positions, scale=scale)
        return apply(ops.attention_mix, apply(ops.softmax, kq), values)


PARTS = ("attention", "attention_scores", "causal_mask", "softmax", "attention_mix")


@law("law-attention-causal", *PARTS)
def attention_causal(trial: Trial) -> None:
    """No token sees the future: whatever keys and values come after a query, its output is the same, for the mask gives them a
    score of -inf, and softmax that score a weight of zero."""
    attention = Attention(trial)
    q, keys, values, T = attention.q, attention.keys, attention.values, len(attention.q)
    t = attention.trial.one_of("t", sorted({0, T // 2, T - 1}))
    later = np.arange(len(keys)) > attention.positions[t]
    other_keys, other_values = keys.copy(), values.copy()
    other_keys[later], other_values[later] = 1e4, -3e4  # such that a glimpse of one would be seen
    before = attention(q, keys, values)[: t + 1]
    after = attention(q, other_keys, other_values)[: t + 1]
    assert_close(after, before, f"tokens up to {t} of {T} depend on later keys or values", within=MIXED, size=ABOUT_ONE)


@law("law-attention-mean", *PARTS)
def attention_mean(trial: Trial) -> None:
    """A query of zeros has no preference, since all its scores are zero: its output is the mean of all values that it sees,
    those before and its own."""
    attention = Attention(trial)
    y = attention(np.zeros_like(attention.q), attention.keys, attention.values)
    n_seen = attention.positions[:, None, None] + 1
    mean = attention.values.cumsum(axis=0, dtype=np.float64)[attention.positions] / n_seen
    size = abs(attention.values).cumsum(axis=0, dtype=np.float64)[attention.positions] / n_seen
    mean, size = (x.repeat(attention.h // attention.k, axis=1) for x in (mean, size))
    assert_close(y, mean, "a query of zeros does not get the mean of the values that it sees", within=MIXED, size=size)


@law("law-attention-one-key", *PARTS)
def attention_one_key(trial: Trial) -> None:
    """The first token sees one key, its own, so softmax gives it weight one and the output is its value: query head i reads
    key head i // (h / k), whatever the query: also if the own key's score is far below what stands for minus infinity."""
    attention = Attention(trial, sharpness=(1.0, 1e5, 1000.0))
    if attention.past > 0:
        attention.positions = attention.positions - attention.past
        attention.keys, attention.values = (x[: len(attention.q)] for x in (attention.keys, attention.values))
    found = attention(attention.q, attention.keys, attention.values)[0]
    own = attention.values[0].repeat(attention.h // attention.k, axis=0)
    assert_close(found, own, "the first token's output is not its own value", within=MIXED, size=ABOUT_ONE)


@law("law-attention-between", *PARTS)
def attention_between(trial: Trial) -> None:
    """The output is a mean of the visible values, so it lies between their least and their largest, in each component; and if
    all values are equal it is that value: the weights are positive and sum to one."""
    attention = Attention(trial, sharpness=(1.0, 1000.0))
    values = attention.values
    if trial.one_of("values", ("drawn", "equal")) == "equal":
        values = np.repeat(values[:1], len(values), axis=0)
    y, group = attention(attention.q, attention.keys, values), attention.h // attention.k
    at = attention.positions
    least, largest = (f.accumulate(values, axis=0)[at].repeat(group, axis=1) for f in (np.minimum, np.maximum))
    # Weights sum to one within some roundings of 6e-8. Added up one after the other, each sum is rounded, up or down: three
    # times what so many chances come to. A key that one of two sums leaves out is 1 / len(values), fifty times that and more
    slack = max(2e-6, 3 * 6e-8 * len(values) ** 0.5) * abs(values).max()
    assert (y >= least - slack).all(), "attention gives less than the least visible value"
    assert (y <= largest + slack).all(), "attention gives more than the largest visible value"


@law("law-attention-order", *PARTS)
def attention_order(trial: Trial) -> None:
    """To the last token the order of keys, each with its value, is nothing: attention is a sum over a set, and where a token
    stands is told by rope only. So no place in the cache, first, last, or at the border of a tile, is treated otherwise."""
    attention = Attention(trial, tokens=(1,))
    order = trial.random("order").permutation(len(attention.keys))
    found = attention(attention.q, attention.keys[order], attention.values[order])
    wanted = attention(attention.q, attention.keys, attention.values)
    assert_close(found, wanted, "the order of the keys changes the output", within=MIXED, size=ABOUT_ONE)


@law("law-attention-heads", *PARTS)
def attention_heads(trial: Trial) -> None:
    """Heads know nothing of each other: key heads in another order, and the groups of query heads that read them likewise,
    give the outputs in that order. A key head alone, with its group, gives what it gives among others."""
    attention = Attention(trial)
    (T, h, d), k = attention.q.shape, attention.k
    order = trial.random("order").permutation(k)
    by_group = (T, k, h // k, d)
    whole = attention(attention.q, attention.keys, attention.values).reshape(by_group)
    q = attention.q.reshape(by_group)
    mixed = attention(q[:, order].reshape(T, h, d), attention.keys[:, order], attention.values[:, order])
    assert_close(mixed.reshape(by_group), whole[:, order], "key heads in another order", within=MIXED, size=ABOUT_ONE)
    one = trial.one_of("key head", range(k))
    alone = attention(q[:, one], attention.keys[:, one : one + 1], attention.values[:, one : one + 1])
    assert_close(alone, whole[:, one], f"key head {one} of {k} alone", within=MIXED, size=ABOUT_ONE)


@law("law-attention-rows", *PARTS)
def attention_rows(trial: Trial) -> None:
    """A query's output among T is what it is alone: queries share the keys, and nothing else."""
    attention = Attention(trial)
    y, T = attention(attention.q, attention.keys, attention.values), len(attention.q)
    t = trial.one_of("t", sorted({0, T // 2, T - 1}))
    seen = attention.past + t + 1
    attention.positions = attention.positions[t : t + 1]
    alone = attention(attention.q[t : t + 1], attention.keys[:seen], attention.values[:seen])
    assert_close(y[t : t + 1], alone, f"query {t} of {T} is not what it is alone", within=MIXED, size=ABOUT_ONE)


@law("law-kv-write", "kv_write")
def kv_written(trial: Trial) -> None:
    """What is written is read again, and nothing else has changed: not the rows before, not those after, which a longer text
    before a rewind may have left there. A float32 cache keeps every bit; a float16 one the nearest float16, ties to even."""
    T, past, spare = trial.one_of("T", TOKENS), trial.one_of("past", STARTS), trial.one_of("spare", SPARE)
    dtype = trial.one_of("dtype", trial.backend.kv_dtypes)
    _, k, d = trial.heads(past + T)
    cache = trial.array("cache", past + T + spare, k, d).astype(dtype)
    x = trial.array("x", T, k, d, magnitudes=(1.0, 1e-3, 30.0))
    wanted = cache.copy()
    wanted[past : past + T] = x
    done = trial.run(ops.kv_write, cache, x, np.arange(past, past + T))
    assert_same(done.written["cache"], wanted, "the cache after kv_write")
    assert_same(done.output, wanted[: past + T], "the rows that kv_write shows")


@law("law-heads-round-trip", "split_heads", "merge_heads")
def heads_round_trip(trial: Trial) -> None:
    """merge_heads(split_heads(x)) = x, bit for bit: the same numbers under another shape. Head i is columns i d to (i+1) d."""
    T = trial.one_of("T", TOKENS)
    h, _, d = trial.heads(T)
    x = trial.array("x", T, h * d)
    heads: Any = trial.apply(ops.split_heads, x, h=h)
    for i in range(h):
        assert_same(heads[:, i], x[:, i * d : (i + 1) * d], f"head {i}")
    assert_same(trial.apply(ops.merge_heads, heads), np.ascontiguousarray(x), "merge_heads(split_heads(x)) is not x")
