"""Laws of the ops that treat each row for itself: products, norms, sums. None needs a reference to compare with."""

from __future__ import annotations

import numpy as np

import ops

from .strategies import TOKENS
from .tolerances import in_terms
from .trial import Trial, assert_close, assert_same, law, weight_of


@law("law-softmax-shift", "softmax")
def softmax_shift(trial: Trial) -> None:
    """softmax(x + c) = softmax(x): exp(c) stands in every term above and below the fraction, and cancels.

    It holds for c = 10,000 as well, where exp(c) is beyond every float: the largest score has to be taken away first.
    """
    (T, S), h = trial.rows(), trial.one_of("h", (1, 2, 7))
    x = trial.array("x", h, T, S, on_grid=True)
    c = np.float32(trial.one_of("c", (1, -3, 80, 200, -1000, 10000)))  # x is on a grid, so that x + c is exact
    assert_close(trial.apply(ops.softmax, x + c), trial.apply(ops.softmax, x), f"softmax(x + {c}) is not softmax(x)")


@law("law-softmax-sum", "softmax")
def softmax_sum(trial: Trial) -> None:
    """A row of softmax is a distribution: no number is negative, the larger score has the larger share, the sum is one.

    Each row is divided by its own sum. A score of -inf, which is what the mask writes, gets exactly nothing.
    """
    (T, S), h = trial.rows(), trial.one_of("h", (1, 2, 7))
    x = trial.array("x", h, T, S, magnitudes=(1.0, 1e-3, 20.0))
    hidden = trial.random("mask").random((h, T, S)) < trial.one_of("masked", (0.0, 0.5))
    hidden[..., 0] = False  # one score at least is seen
    y = trial.apply(ops.softmax, np.where(hidden, np.float32(-np.inf), x))
    assert (y >= 0).all(), f"softmax gives {y.min()}, a negative weight"
    assert not y[hidden].any(), "softmax gives weight to a score of -inf"
    order = np.argsort(np.where(hidden, -np.inf, x), axis=-1, kind="stable")
    # two scores one rounding apart may swap by exp's last bits
    assert (np.diff(np.take_along_axis(y, order, -1), axis=-1) >= -1e-6).all(), "softmax gives a larger score less weight"
    total = y.sum(-1, dtype=np.float64)
    assert (abs(total - 1) <= 5e-6).all(), f"a row of softmax sums to {total.flat[abs(total - 1).argmax()]:.9g}"


@law("law-rmsnorm-scale", "rmsnorm")
def rmsnorm_scale(trial: Trial) -> None:
    """rmsnorm(c x) = rmsnorm(x) as long as eps is nothing beside mean(x^2): the root of c^2 divides c away."""
    x = trial.array("x", *trial.rows()).copy()
    x[:, 0] += np.where(x[:, 0] < 0, np.float32(-4), np.float32(4))  # no row is small, so that eps = 1e-12 is nothing to it
    weight = trial.array("weight", x.shape[1])
    c = np.float32(trial.one_of("c", (2.0, -1.0, 0.125, 1024.0)))  # powers of two: c * x is exact
    y, scaled = (trial.apply(ops.rmsnorm, a, weight, eps=1e-12) for a in (x, c * x))
    assert_close(scaled, np.sign(c) * y, f"rmsnorm({c} x) is not {'-' if c < 0 else ''}rmsnorm(x)")


@law("law-rmsnorm-unit", "rmsnorm")
def rmsnorm_unit(trial: Trial) -> None:
    """The mean square of rmsnorm(x), before the weight, is m / (m + eps) where m is that of x: one if eps is nothing beside it,
    one half if eps = m. So eps is added to the mean, and under the root."""
    x = trial.array("x", *trial.rows(), magnitudes=(1.0, 1e-3, 1e-6, 30.0, 1e4))
    m = np.square(x, dtype=np.float64).mean(-1)
    eps = trial.one_of("eps", (1e-5, 1e-6, 1e-12, 0.1)) if trial.one_of("eps as large as m", (False, True)) else float(m.mean())
    y = trial.apply(ops.rmsnorm, x, np.ones(x.shape[1], np.float32), eps=eps)
    found, wanted = np.square(y, dtype=np.float64).mean(-1).astype(np.float32), m / (m + np.float32(eps))
    # a square has twice the relative error of y, in which there are a sum of up to 300 squares, a root and a division
    assert_close(found, wanted, f"the mean square of rmsnorm(x), eps = {eps}", within=4e-6)


@law("law-layernorm-shift", "layernorm")
def layernorm_shift(trial: Trial) -> None:
    """layernorm(x + c) = layernorm(x): the mean moves along, and is taken away. Also for a c that is large beside the spread of
    x, where mean(x^2) - mean(x)^2 would be the difference of two numbers that are nearly equal."""
    x = trial.array("x", *trial.rows(), on_grid=True)
    weight, bias = trial.array("weight", x.shape[1]), trial.array("bias", x.shape[1])
    c = np.float32(trial.one_of("c", (1, -30, 500, 10000)))  # x is on a grid, so that x + c is exact
    y, shifted = (trial.apply(ops.layernorm, a, weight, bias, eps=1e-5) for a in (x, x + c))
    deviation = np.sqrt(x.var(axis=1, keepdims=True, dtype=np.float64) + 1e-5)
    size = (16 + abs(c)) / deviation * abs(weight) + abs(bias)  # the mean is rounded to float32, and n numbers were added up
    assert_close(shifted, y, f"layernorm(x + {c}) is not layernorm(x)", within=4e-6, size=size)


@law("law-layernorm-scale", "layernorm")
def layernorm_scale(trial: Trial) -> None:
    """layernorm(c x) = layernorm(x) as long as eps is nothing beside var(x); with the other sign before the bias if c < 0."""
    x = trial.array("x", *trial.rows()).copy()
    x[:, 0] += np.where(x[:, 0] < 0, np.float32(-4), np.float32(4))  # far from the others, so that eps = 1e-12 is nothing
    weight, no_bias = trial.array("weight", x.shape[1]), np.zeros(x.shape[1], np.float32)
    c = np.float32(trial.one_of("c", (2.0, -1.0, 0.125, 1024.0)))  # powers of two: c * x is exact
    y, scaled = (trial.apply(ops.layernorm, a, weight, no_bias, eps=1e-12) for a in (x, c * x))
    size = abs(y) + abs(weight)  # y is small where x was near the mean
    assert_close(scaled, np.sign(c) * y, f"layernorm({c} x) is not {'-' if c < 0 else ''}layernorm(x)", size=size)


@law("law-layernorm-unit", "layernorm")
def layernorm_unit(trial: Trial) -> None:
    """Before weight and bias, the mean of layernorm(x) is 0 and its mean square v / (v + eps), where v is the variance of x (by
    n, not n - 1): one if eps is nothing beside it, one half if eps = v. Of a row of zeros the bias is left."""
    x = trial.array("x", *trial.rows(), magnitudes=(1.0, 1e-3, 30.0, 1e4))
    v = np.var(x, axis=1, dtype=np.float64)
    as_large = trial.one_of("eps as large as v", (False, True)) and v.any()  # v of a single number is 0
    eps = float(v.mean()) if as_large else trial.one_of("eps", (1e-5, 1e-6, 1e-3, 0.1))
    ones, bias = np.ones(x.shape[1], np.float32), trial.array("bias", x.shape[1])
    y = trial.apply(ops.layernorm, x, ones, np.zeros_like(ones), eps=eps).astype(np.float64)
    assert_close(y.mean(1).astype(np.float32), np.zeros_like(v), "the mean of layernorm(x)", within=4e-6, size=np.ones_like(v))
    # a square has twice the relative error of y, in which there are two sums of up to 2050 numbers, a root and a division
    assert_close(
        np.square(y).mean(1).astype(np.float32), v / (v + eps), f"mean square of layernorm(x), eps = {eps}", within=4e-6
    )
    rows = np.repeat(bias[None], len(x), axis=0)
    assert_same(trial.apply(ops.layernorm, np.zeros_like(x), ones, bias, eps=eps), rows, "layernorm(0) is not the bias")


@law("law-matmul-linear", "matmul")
def matmul_linear(trial: Trial) -> None:
    """(2 a - b) @ w = 2 (a @ w) - b @ w: a product is linear. A sum that overflows, saturates or is kept in half is not."""
    T, weight = trial.one_of("T", TOKENS), trial.weight("weight")
    a, b = (trial.array(name, T, weight.shape[1], on_grid=True) for name in "ab")
    of_a, of_b, of_both = (trial.apply(ops.matmul, x, weight) for x in (a, b, 2 * a - b))
    size = (2 * abs(a) + abs(b)) @ abs(weight.dequantize()).T  # of the products that are added up, before they cancel
    assert_close(of_both, 2 * of_a - of_b, "(2a - b) @ w is not 2(a @ w) - b @ w", size=size)


@law("law-matmul-rows", "matmul")
def matmul_rows(trial: Trial) -> None:
    """A row of x @ w depends on that row of x alone: computed by itself, or among other neighbours, it is the same.

    The kernels for one row and for many differ in nearly everything but the result.
    """
    T, weight = trial.one_of("T", TOKENS), trial.weight("weight")
    x = trial.array("x", T, weight.shape[1])
    t = trial.one_of("t", sorted({0, T // 2, T - 1}))
    among = x * np.float32(1000)
    among[t] = x[t]
    alone = trial.apply(ops.matmul, x[t : t + 1], weight)[0]
    size = abs(x[t]) @ abs(weight.dequantize()).T
    for batch in (x, among):
        assert_close(trial.apply(ops.matmul, batch, weight)[t], alone, f"row {t} of {T} is not what it is alone", size=size)


@law("law-matmul-columns", "matmul")
def matmul_columns(trial: Trial) -> None:
    """A row of x that is zero but for a one at column j picks column j of the weight: the weight's own numbers come out.

    Nothing is added but zeros, so this is each number of a quantised block as the kernel reads it: scale, nibble, high bit.
    """
    weight = trial.weight("weight")
    n = weight.shape[1]
    columns = trial.random("columns").integers(0, n, trial.one_of("T", TOKENS))
    picked = trial.apply(ops.matmul, np.eye(n, dtype=np.float32)[columns], weight)
    rows = trial.apply(ops.embedding, np.arange(weight.shape[0]), weight)
    size = in_terms(rows, weight)[:, columns].T  # a number may be the difference of two larger ones of its block, d q - m
    assert_close(picked, rows[:, columns].T, "one-hot rows do not pick columns of the weight", size=size)


@law("law-matmul-identity", "matmul")
def matmul_identity(trial: Trial) -> None:
    """x @ identity = x: products with zero and one round nothing, nor do sums with zero."""
    x = trial.array("x", *trial.rows(), magnitudes=(1.0, 1e-3, 1e4))
    y = trial.apply(ops.matmul, x, weight_of(np.eye(x.shape[1]), trial.one_of("format", ("F32", "F16", "BF16"))))
    assert_close(y, x, "x @ identity is not x", within=1e-7)  # one rounding is 6e-8


@law("law-embedding-rows", "embedding")
def embedding_rows(trial: Trial) -> None:
    """The same token has the same vector wherever it stands, to the last bit, and whatever stands beside it: its row of the
    table and nothing else."""
    table = trial.weight("table")
    tokens = trial.random("tokens").integers(0, table.shape[0], trial.one_of("T", TOKENS))
    x = trial.apply(ops.embedding, tokens, table)
    alone = np.concatenate([trial.apply(ops.embedding, tokens[t : t + 1], table) for t in range(min(3, len(tokens)))])
    assert_same(x[: len(alone)], alone, "a token's vector depends on its neighbours")
    _, first, again = np.unique(tokens, return_index=True, return_inverse=True)
    assert_same(x, x[first][again], "a token that comes twice has two vectors")


@law("law-embedding-large", "embedding", examples=20)
def embedding_large(trial: Trial) -> None:
    """A table whose row t begins with the number t gives the tokens back, exactly, up to vocabularies of 140,000: float32 has
    24 bits for a whole number, and ids that were cut to 8 or 16 bits, rounded, or clamped show."""
    V = trial.one_of("V", (3, 300, 70_000, 140_000))
    table = np.stack([np.arange(V), -np.arange(V)], axis=1)
    tokens = trial.random("tokens").integers(0, V, trial.one_of("T", TOKENS))
    tokens[-1] = V - 1
    x = trial.apply(ops.embedding, tokens, weight_of(table))
    assert_same(x, table[tokens].astype(np.float32), f"rows of a table of {V}")


@law("law-get-rows-order", "get_rows")
def get_rows_order(trial: Trial) -> None:
    """Rows picked in some order are those rows in that order: undone by the inverse order, and nothing is rounded."""
    x = trial.array("x", *trial.rows(), magnitudes=(1.0, 1e-6, 1e4))
    order = trial.random("order").permutation(len(x))
    mixed = trial.apply(ops.get_rows, x, order)
    assert_same(mixed, x[order], "rows come in another order than asked for")
    assert_same(trial.apply(ops.get_rows, mixed, np.argsort(order)), np.ascontiguousarray(x), "picked and put back")
    last = trial.apply(ops.get_rows, x, np.array([len(x) - 1]))
    assert_same(last, x[-1:].copy(), "the last row, which is what a step asks for")


@law("law-silu-odd-part", "silu")
def silu_odd_part(trial: Trial) -> None:
    """silu(x) - silu(-x) = x, since sigmoid(x) + sigmoid(-x) = 1. silu lies between x and 0, or little below them."""
    x = trial.array("x", *trial.rows(), magnitudes=(1.0, 1e-6, 30.0, 1e4))
    y, mirrored = trial.apply(ops.silu, x), trial.apply(ops.silu, -x)
    assert_close(y - mirrored, x, "silu(x) - silu(-x) is not x")
    assert (y >= -0.27847).all(), f"silu gives {y.min()}; its minimum is -0.278464, at x = -1.278465"
    assert (y <= np.maximum(x, 0) * 1.000001).all(), "silu(x) is larger than max(x, 0)"


@law("law-gelu-odd-part", "gelu")
def gelu_odd_part(trial: Trial) -> None:
    """gelu(x) - gelu(-x) = x, since a normal number is below x or above it. gelu lies between x and 0, or little below them.
    (gelu(k) + gelu(-k)) / k is the part of normal numbers within k deviations: 68.27%, 95.45%, 99.73% for 1, 2, 3."""
    x = trial.array("x", *trial.rows(), magnitudes=(1.0, 1e-6, 30.0, 1e4))
    y, mirrored = trial.apply(ops.gelu, x), trial.apply(ops.gelu, -x)
    assert_close(y - mirrored, x, "gelu(x) - gelu(-x) is not x")
    assert (y >= -0.169972).all(), f"gelu gives {y.min()}; its minimum is -0.169971, at x = -0.751792"
    assert (y <= np.maximum(x, 0) * 1.000001).all(), "gelu(x) is larger than max(x, 0)"
    k = np.array([[1, 2, 3]], np.float32)
    within = (trial.apply(ops.gelu, k) + trial.apply(ops.gelu, -k)) / k
    assert_close(within, np.array([[0.682689492, 0.954499736, 0.997300204]]), "normal numbers within 1, 2, 3 deviations")


@law("law-swiglu-parts", "swiglu", "silu", "mul")
def swiglu_parts(trial: Trial) -> None:
    """swiglu(gate, up) = silu(gate) * up: a fused op is the ops it is made of, and nothing else."""
    shape = trial.rows()
    gate = trial.array("gate", *shape, magnitudes=(1.0, 1e-3, 30.0))
    up = trial.array("up", *shape)
    parts = trial.apply(ops.mul, trial.apply(ops.silu, gate), up)
    assert_close(trial.apply(ops.swiglu, gate, up), parts, "swiglu(gate, up) is not silu(gate) * up")


@law("law-sum-and-product", "add", "mul", "add_bias")
def sum_and_product(trial: Trial) -> None:
    """a + b = b + a, a b = b a, a + 0 = a, a 1 = a, a + a = 2 a, (a + b) - b = a where no bit is lost, all of it exactly:
    IEEE 754 rounds the true result, which does not know the order. A bias is a row added to every row."""
    shape = trial.rows()
    a, b = (trial.array(name, *shape, on_grid=True) for name in "ab")
    a_plain = np.ascontiguousarray(a)
    for op, neutral in ((ops.add, 0), (ops.mul, 1)):
        assert_same(trial.apply(op, a, b), trial.apply(op, b, a), f"{op.name}(a, b) is not {op.name}(b, a)")
        assert_close(trial.apply(op, a, np.full_like(a, neutral)), a_plain, f"{op.name}(a, {neutral}) is not a", within=0)
    assert_same(trial.apply(ops.add, a, a), trial.apply(ops.mul, a, np.full_like(a, 2)), "a + a is not 2 a")
    assert_close(trial.apply(ops.add, trial.apply(ops.add, a, b), -b), a_plain, "(a + b) - b is not a", within=0)
    rows = np.repeat(b[:1], len(a), axis=0)
    assert_same(trial.apply(ops.add_bias, a, b[0]), trial.apply(ops.add, a, rows), "add_bias is not add of the same row")
