"""How far from the float64 formula a float32 backend may be, op by op, and why.

u = 2^-24 is what rounding to float32 changes a number by at most, relatively. Every limit is a count of roundings, relative to
an element's `size`: what is added up in it, without the help of cancellation. It holds twice:

    NMSE = sum (ours - truth)^2 / sum size^2  <=  ((roundings + drift) * u)^2      all elements together
    |ours - truth|  <=  (8 * roundings + drift) * u * size                         each element

The second finds one wrong row among thousands. `roundings` go either way, each element's own. It is two to four times what a
plain loop in float32 does (its sum is the least accurate of all: every partial sum is rounded), so that chance never fails a
right backend: 8 times it is more than 15 standard deviations. `drift` is shared by a whole row: n equal numbers added one by
one are all rounded the same way, at most by n/2 roundings of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.activation import silu
from ops.attention import attention_mix, attention_scores, causal_mask
from ops.matmul import matmul
from ops.norm import rmsnorm
from ops.op import OPS, Op, Operand
from ops.softmax import softmax
from ops.tensor import Tensor

Doubles = NDArray[Any]
U = 2.0**-24
ELEMENT = 8.0  # roundings of one element, in units of the root of their mean square
# Below it float32 loses digits, and some devices take numbers for 0: 1/exp(88.7), the smallest that silu can divide by, is
# 3e-39, and 2^-126 the smallest number with all digits.
SMALLEST = 1e-36

Size = Callable[[Sequence[Any], dict[str, Any], Doubles], Doubles]  # of float64 operands, attributes and the truth


@dataclass(frozen=True)
class Tolerance:
    roundings: Callable[[dict[str, int]], float]  # of the sizes
    size: Size
    reason: str
    drift: Callable[[dict[str, int]], float] = lambda s: 0.0

    @property
    def exact(self) -> bool:
        return self is COPY


def itself(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    return np.abs(truth)


def terms(op: str, *which: int) -> Size:
    """Of a sum: the root of the sum of the squares of its terms; if they have one sign, the sum. `which`: of the operands."""

    def size(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
        operands = [operands[i] for i in which] or operands
        squares = OPS[op].formula(*(x if _is_int(x) else np.square(x) for x in operands), **attrs)
        return np.maximum(np.abs(truth), np.sqrt(squares))

    return size


def of_the_block(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of embedding: the largest weight of its block. `d * q + m` may cancel, after a product that was rounded or not."""
    tokens, table = operands  # in terms, as `in_terms` has them
    return np.asarray(np.abs(table[tokens]))


def pairs(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of rope: the length of the pair that is turned; nothing for what must stay as it is."""
    r, size = len(operands[2]), np.abs(truth)
    first, second = (slice(r), slice(r, 2 * r)) if attrs.get("neox") else (slice(0, 2 * r, 2), slice(1, 2 * r, 2))
    size[..., first] = size[..., second] = np.hypot(truth[..., first], truth[..., second])
    return size


def argument(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of gelu: x. Nearly all compute x/2 * (1 + erf(x / sqrt(2))), whose sum cancels where x is negative."""
    return np.asarray(np.abs(operands[0]))


def centred(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of layernorm: x, the terms of its mean, and the bias, all of which may cancel, without their signs."""
    x, weight, bias = operands
    all_terms, deviation = np.abs(x).mean(axis=-1, keepdims=True), np.sqrt(x.var(axis=-1, keepdims=True) + attrs["eps"])
    return np.asarray((np.abs(x) + all_terms) / deviation * np.abs(weight) + np.abs(bias))


def below_the_largest(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of softmax: exp of a difference D of scores, which is rounded too, is off by D roundings more."""
    (x,) = operands
    below = np.where(truth > 0, x.max(axis=-1, keepdims=True) - x, 0)
    return truth * (1 + below / 4)


def mixed(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of attention: the weights' errors times what they weigh.

    A score is a sum of d products. Its error is exp's relative error, so it counts with the score's own size: scores of 1000
    may be off by 1000 roundings, and all weights of the row with them.
    """
    q, keys, values, positions = operands
    scale = abs(attrs["scale"])
    scores = attention_scores(q, keys)
    p = softmax(causal_mask(scores, positions, scale=attrs["scale"]))
    of_score = scale * np.maximum(np.abs(scores), np.sqrt(attention_scores(np.square(q), np.square(keys))))
    visible = np.where(np.isinf(causal_mask(scores, positions, scale=1.0)), 0, of_score)
    roundings = 1 + np.sqrt(q.shape[-1]) * visible.max(axis=-1) / 2  # [h, T]
    return np.asarray(attention_mix(p, np.abs(values)) * roundings.T[:, :, None])


def normed(weight: int) -> Size:
    """Of a product with rmsnorm(x): as `terms`, of the normed x and of the operand of this number."""

    def size(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
        x, norm = operands[:2]
        return np.asarray(terms("matmul")([rmsnorm(x, norm, **attrs), operands[weight]], {}, truth))

    return size


def added(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of matmul_add: the terms of the product, and the residual, which may cancel it."""
    x, weight, residual = operands
    return np.asarray(terms("matmul")([x, weight], {}, truth) + np.abs(residual))


def gated(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of norm_swiglu: both products as `normed` has them, each times what it is multiplied by.

    silu is nowhere steeper than 1.1, so that it is off by 1.1 times as much as its operand at most.
    """
    x, norm, gate, up = operands
    h = rmsnorm(x, norm, **attrs)
    g, u = matmul(h, gate.numbers), matmul(h, up.numbers)
    of_gate, of_up = (terms("matmul")([h, w], {}, y) for w, y in ((gate, g), (up, u)))
    return np.asarray(1.1 * of_gate * np.abs(u) + np.abs(silu(g)) * of_up)


def turned(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of rope_kv_write's queries: as `pairs`."""
    return pairs([operands[0], operands[3], operands[4]], attrs, truth)


def turned_rows(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
    """Of rope_kv_write's keys in sight: as `pairs` in the rows that are written; nothing in those before, which stay."""
    _, key, _, positions, freqs, _, _ = operands
    size = np.zeros_like(truth)
    size[positions] = pairs([key, positions, freqs], attrs, truth[positions])
    return size


COPY = Tolerance(lambda s: 0, itself, "copies: equal bit for bit, into a float16 cache rounded to the nearest, ties to even")
ONE = Tolerance(lambda s: 1, itself, "one operation, rounded once")
ROPE = "angles are exact (float64, or two floats); sin and cos (4 units in OpenCL), two products, a sum"
NORM_MATMUL = "rmsnorm, whose errors are the product's too, and a sum of n products"


def norm_matmul(weight: int) -> Tolerance:
    return Tolerance(lambda s: 8 + 1.5 * s["n"] ** 0.5, normed(weight), NORM_MATMUL)


def one_of_several(weight: int) -> Tolerance:
    return Tolerance(lambda s: 2 + s["n"] ** 0.5, terms("matmul", 0, weight), "as matmul: a sum of n products")


TOLERANCES: dict[str, Tolerance] = {  # by op, or by op.output
    "get_rows": COPY,
    "split_heads": COPY,
    "merge_heads": COPY,
    "kv_write": COPY,
    "top_k.values": COPY,
    "top_k.ids": COPY,
    "add": ONE,
    "mul": ONE,
    "add_bias": ONE,
    "embedding": Tolerance(
        lambda s: 2,
        of_the_block,
        "a weight of a block is one product, or a product and a sum: compilers may round once or twice",
    ),
    "causal_mask": Tolerance(lambda s: 2, itself, "scale is rounded to float32, and so is the product"),
    "silu": Tolerance(lambda s: 6, itself, "exp and a division, which OpenCL lets be off by 3 and 2.5 units in the last place"),
    "gelu": Tolerance(lambda s: 6, argument, "erf, or a polynomial and exp; two products and a sum"),
    "swiglu": Tolerance(lambda s: 7, itself, "silu, and one product"),
    "softmax": Tolerance(
        lambda s: 6,
        below_the_largest,
        "exp and a division as in silu; a sum of S numbers, which may be equal",
        lambda s: s["S"] / 2,
    ),
    "rmsnorm": Tolerance(
        lambda s: 6 + s["n"] ** 0.5 / 2, itself, "a sum of n squares; root and division (3 and 2.5 units in OpenCL), a product"
    ),
    "layernorm": Tolerance(
        lambda s: 6 + s["n"] ** 0.5 / 2,
        centred,
        "a sum of n numbers, which may be nearly equal, and one of n squares; root, division and product as in rmsnorm",
        lambda s: s["n"] / 2,
    ),
    "rope": Tolerance(lambda s: 6, pairs, ROPE),
    "matmul": Tolerance(
        lambda s: 2 + s["n"] ** 0.5,
        terms("matmul"),
        "a sum of n products: n roundings of partial sums, which go as a random walk",
    ),
    "attention_scores": Tolerance(lambda s: 2 + s["d"] ** 0.5, terms("attention_scores"), "a sum of d products"),
    "attention_mix": Tolerance(lambda s: 2 + s["S"] ** 0.5, terms("attention_mix"), "a sum of S products"),
    "attention": Tolerance(
        lambda s: 6 + s["S"] ** 0.5, mixed, "scores as sums of d products, softmax, a sum of S products", lambda s: s["S"] / 2
    ),
    "qkv.q": one_of_several(1),
    "qkv.k": one_of_several(2),
    "qkv.v": one_of_several(3),
    "norm_qkv.q": norm_matmul(2),
    "norm_qkv.k": norm_matmul(3),
    "norm_qkv.v": norm_matmul(4),
    "norm_matmul": norm_matmul(2),
    "norm_swiglu": Tolerance(
        lambda s: 15 + 1.5 * s["n"] ** 0.5, gated, "two products with what rmsnorm made, as in norm_matmul, and swiglu of them"
    ),
    "matmul_add": Tolerance(lambda s: 3 + s["n"] ** 0.5, added, "a sum of n products, and one more sum"),
    "rope_kv_write.turned": Tolerance(lambda s: 6, turned, f"as rope: {ROPE}"),
    "rope_kv_write.keys": Tolerance(
        lambda s: 6, turned_rows, "as rope; in a float16 cache the nearest to a number that is as near to the truth"
    ),
    "rope_kv_write.values": COPY,
}


def tolerance(op: Op, output: Operand) -> Tolerance:
    """The output's own; of an op that is not in the table, a loose one: a few dozen roundings and sums over all letters."""
    return (
        TOLERANCES.get(f"{op.name}.{output.name}")
        or TOLERANCES.get(op.name)
        or Tolerance(
            lambda s: 30 + max(s.values(), default=1) ** 0.5, _unsigned(op, output), "an op without a tolerance of its own"
        )
    )


def _unsigned(op: Op, output: Operand) -> Size:
    """The formula of the numbers without their signs, where that makes sense."""

    def size(operands: Sequence[Any], attrs: dict[str, Any], truth: Doubles) -> Doubles:
        with np.errstate(all="ignore"):
            made = op.results(op.formula(*(np.abs(x) for x in operands), **attrs))
            unsigned = np.abs(made[op.outputs.index(output)])
        return np.fmax(np.abs(truth), np.where(np.isfinite(unsigned), unsigned, 0))

    return size


class InTerms(np.ndarray[Any, np.dtype[Any]]):
    """Weights by the size of their terms; `numbers` are the weights themselves."""

    numbers: Doubles


def in_terms(x: Doubles, tensor: Tensor) -> InTerms:
    """Weights in blocks are sums too, `d * q + m`: each counts as the largest of its block."""
    n = tensor.format.block_size
    blocks = np.abs(x).reshape(-1, n).max(axis=1, keepdims=True)
    made = np.broadcast_to(blocks, (len(blocks), n)).reshape(x.shape).view(InTerms)
    made.numbers = x
    return made


def _is_int(x: Any) -> bool:
    return bool(x.dtype.kind in "iu")
