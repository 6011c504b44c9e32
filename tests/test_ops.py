"""What each op means: formulas written again here, element by element from their papers, in plain Python loops."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

import ops
from ops.errors import ShapeError
from ops.op import OPS

RNG = np.random.default_rng(7)
# The loops below and numpy add the same numbers in another order: some 1000 roundings of float64.
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def test_rmsnorm_is_equation_4():
    x, w, eps = rand(3, 5), rand(5), 1e-5
    for t in range(3):
        rms = math.sqrt(sum(v * v for v in x[t]) / 5 + eps)
        np.testing.assert_allclose(ops.rmsnorm(x, w, eps=eps)[t], [x[t, i] / rms * w[i] for i in range(5)], **CLOSE)


def test_layernorm_is_equation_4():
    x, w, b, eps = rand(3, 5) + 7, rand(5), rand(5), 0.1
    for t in range(3):
        mean = sum(x[t]) / 5
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x[t]) / 5 + eps)
        expected = [(x[t, i] - mean) / deviation * w[i] + b[i] for i in range(5)]
        np.testing.assert_allclose(ops.layernorm(x, w, b, eps=eps)[t], expected, **CLOSE)


def test_gelu_counts_the_normal_numbers_below():
    x = np.linspace(-9, 9, 37)[None]
    expected = [v * statistics.NormalDist().cdf(v) for v in x[0]]
    np.testing.assert_allclose(ops.gelu(x)[0], expected, rtol=1e-12, atol=1e-15)  # cdf is 1 + erf: its tail is the atol
    # Abramowitz & Stegun 1964, table 26.2: the logarithms of the tails at 5 and 10, to five digits after the point
    tails = -ops.gelu(np.array([-5.0, -10.0])) / [5, 10]
    np.testing.assert_allclose(np.log10(tails), [-6.54265, -23.11805], rtol=0, atol=5.1e-6)


@pytest.mark.parametrize("neox", [False, True])
def test_rope_is_multiplication_of_complex_numbers(neox):
    T, h, d, r = 4, 2, 8, 3  # the last two components are not turned
    x, positions, freqs = rand(T, h, d), np.array([0, 1, 5, 900]), np.array([1.0, 0.3, 0.01])
    y = ops.rope(x, positions, freqs, neox=neox)
    for t in range(T):
        for i in range(r):
            a, b = (i, i + r) if neox else (2 * i, 2 * i + 1)
            turned = (x[t, :, a] + 1j * x[t, :, b]) * np.exp(1j * positions[t] * freqs[i])
            np.testing.assert_allclose(y[t, :, a], turned.real, **CLOSE)
            np.testing.assert_allclose(y[t, :, b], turned.imag, **CLOSE)
    np.testing.assert_array_equal(y[..., 2 * r :], x[..., 2 * r :])


def test_attention_is_equation_1_with_shared_heads_and_no_future():
    T, S, h, k, d, scale = 3, 5, 4, 2, 6, 0.4
    q, keys, values, positions = rand(T, h, d), rand(S, k, d), rand(S, k, d), np.array([2, 3, 4])
    y = ops.attention(q, keys, values, positions, scale=scale)
    for t in range(T):
        for i in range(h):
            seen = range(positions[t] + 1)
            scores = [math.exp(scale * sum(q[t, i, c] * keys[s, i // 2, c] for c in range(d))) for s in seen]
            expected = sum(p / sum(scores) * values[s, i // 2] for s, p in zip(seen, scores, strict=True))
            np.testing.assert_allclose(y[t, i], expected, **CLOSE)


def test_swiglu_and_silu():
    gate, up = rand(2, 7) * 5, rand(2, 7)
    expected = [[g / (1 + math.exp(-g)) * u for g, u in zip(gs, us, strict=True)] for gs, us in zip(gate, up, strict=True)]
    np.testing.assert_allclose(ops.swiglu(gate, up), expected, **CLOSE)
    assert ops.silu(np.array([-1e5])) == 0  # exp overflows on the way; the value does not, and nothing warns


def test_kv_write_changes_its_cache_and_sees_the_filled_part():
    cache, x = np.zeros((8, 1, 2)), rand(2, 1, 2)
    seen = ops.kv_write(cache, x, np.array([3, 4]))
    assert seen.shape == (5, 1, 2)
    assert np.shares_memory(seen, cache)
    np.testing.assert_array_equal(cache[3:5], x)
    assert not cache[[0, 1, 2, 5, 6, 7]].any()


def test_rows_heads_and_sums():
    table, x = rand(9, 4), rand(3, 4)
    np.testing.assert_array_equal(ops.embedding(np.array([8, 0]), table), table[[8, 0]])
    np.testing.assert_array_equal(ops.get_rows(x, np.array([2])), x[2:])
    np.testing.assert_array_equal(ops.split_heads(x, h=2)[:, 1], x[:, 2:])
    np.testing.assert_array_equal(ops.merge_heads(ops.split_heads(x, h=2)), x)
    np.testing.assert_array_equal(ops.add_bias(x, np.arange(4.0)), x + np.array([0, 1, 2, 3]))
    np.testing.assert_allclose(ops.matmul(x, table), [[sum(a * b) for b in table] for a in x], **CLOSE)


def test_fused_ops_are_what_their_names_say():
    x, norm, weights = rand(2, 5), rand(5), [rand(m, 5) for m in (4, 4, 3)]
    h = [[v / math.sqrt(sum(v * v for v in row) / 5 + 0.1) * w for v, w in zip(row, norm, strict=True)] for row in x]

    def product(rows, weight):
        return [[sum(a * b for a, b in zip(row, w, strict=True)) for w in weight] for row in rows]

    for y, w in zip(ops.qkv(x, *weights), weights, strict=True):
        np.testing.assert_allclose(y, product(x, w), **CLOSE)
    for y, w in zip(ops.norm_qkv(x, norm, *weights, eps=0.1), weights, strict=True):
        np.testing.assert_allclose(y, product(h, w), **CLOSE)
    np.testing.assert_allclose(ops.norm_matmul(x, norm, weights[0], eps=0.1), product(h, weights[0]), **CLOSE)
    residual = rand(2, 4)
    np.testing.assert_allclose(ops.matmul_add(x, weights[0], residual), residual + product(x, weights[0]), **CLOSE)
    gate, up = (np.array(product(h, w)) for w in weights[:2])
    np.testing.assert_allclose(ops.norm_swiglu(x, norm, *weights[:2], eps=0.1), gate / (1 + np.exp(-gate)) * up, **CLOSE)


def test_rope_kv_write_turns_queries_and_keys_and_fills_both_caches():
    q, key, value, positions = rand(2, 3, 4), rand(2, 1, 4), rand(2, 1, 2), np.array([3, 4])
    caches = np.zeros((8, 1, 4)), np.zeros((8, 1, 2))
    turned, keys, values = ops.rope_kv_write(q, key, value, positions, np.array([0.5, 0.1]), *caches)
    turn = np.exp(1j * positions[:, None] * np.array([0.5, 0.1]))[:, None]
    for y, x in ((turned, q), (keys[3:], key)):
        np.testing.assert_allclose(y[..., ::2] + 1j * y[..., 1::2], (x[..., ::2] + 1j * x[..., 1::2]) * turn, **CLOSE)
    np.testing.assert_array_equal(values[3:], value)
    for seen, cache in zip((keys, values), caches, strict=True):
        assert seen.shape[0] == 5
        assert np.shares_memory(seen, cache)
        assert not cache[[0, 1, 2, 5, 6, 7]].any()


FLOAT_OPS = [op for op in OPS.values() if all(o.dtype == "float" for o in (*op.inputs, *op.outputs)) and not op.attrs]


@pytest.mark.parametrize("op", FLOAT_OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_op_keeps_its_inputs_dtype_and_its_inputs(op, dtype):
    sizes = {"T": 3, "n": 6, "h": 3, "d": 2, "S": 5, "k": 1}
    inputs = [rand(*(sizes[d] for d in o.dims)).astype(dtype) for o in op.inputs]
    before = [x.copy() for x in inputs]
    assert op(*inputs).dtype == dtype
    for x, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, was)


def test_rope_in_float32_stays_float32_though_positions_are_int64():
    y = ops.rope(rand(2, 1, 4).astype(np.float32), np.array([1, 2]), np.ones(2, np.float32))
    assert y.dtype == np.float32


def test_errors_name_the_op_the_operand_and_both_shapes():
    graph = ops.Graph()
    x, w = graph.leaf("x", ("T", 4)), graph.leaf("w", (3, 5))
    with pytest.raises(ShapeError, match=r"matmul: weight has shape \[3, 5\], expected \[m, n=4\]"):
        ops.matmul(x, w)
    with pytest.raises(ShapeError, match=r"split_heads: needs n % h == 0, but n=4, h=3"):
        ops.split_heads(x, h=3)
    with pytest.raises(ShapeError, match=r"rmsnorm: weight has shape \[3, 5\], expected \[n=4\]"):
        ops.rmsnorm(x, w, eps=1e-5)
    with pytest.raises(ShapeError, match="silu: has no attribute slope"):
        ops.silu(x, slope=2)
    with pytest.raises(ShapeError, match="matmul: takes 2 operands"):
        ops.matmul(x)


def test_cost_counts_what_is_touched():
    x, w = np.zeros((2, 8), np.float32), np.zeros((3, 8), np.float32)
    y = ops.matmul(x, w)
    cost = OPS["matmul"].cost([x, w], [y])
    assert (cost.flops, cost.bytes) == (2 * 2 * 3 * 8, x.nbytes + w.nbytes + y.nbytes)

    table, ids = np.zeros((1000, 8), np.float32), np.array([5, 6])
    rows = ops.embedding(ids, table)
    assert OPS["embedding"].cost([ids, table], [rows]).bytes == ids.nbytes + 2 * 8 * 4 + rows.nbytes  # two rows, not all

    q, kv, positions = np.zeros((1, 2, 4), np.float32), np.zeros((10, 1, 4), np.float32), np.array([9])
    out = ops.attention(q, kv, kv, positions, scale=1.0)
    assert OPS["attention"].cost([q, kv, kv, positions], [out]).flops == 2 * 2 * 2 * 4 * 10  # q.k and p.v
    several = ops.qkv(x, w, w[:2], w[:1])
    cost = OPS["qkv"].cost([x, w, w[:2], w[:1]], several)
    assert (cost.flops, cost.bytes) == (2 * 2 * 8 * (3 + 2 + 1), x.nbytes + 2 * w.nbytes + sum(y.nbytes for y in several))

    assert OPS["merge_heads"].cost([q], [ops.merge_heads(q)]).bytes == 0  # the same memory


def test_every_op_tells_its_formula():
    for op in OPS.values():
        assert op.__doc__, op.name
        assert "->" in op.signature
