"""Wrong in what is done to every number or row by itself: norms, softmax, activations, sums, rows that are picked."""

from __future__ import annotations

import numpy as np

import ops
from backends.base import kernel
from backends.numpy import Numpy

from .mutant import wrong


@wrong("rmsnorm")
class EpsOutsideTheRoot(Numpy):
    """x / (sqrt(mean(x^2)) + eps)"""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        return x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + np.float32(eps)) * weight


@wrong("rmsnorm")
class EpsMissing(Numpy):
    """Right until a row is small."""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        return super().rmsnorm(x, weight, eps=0.0)


@wrong("rmsnorm")
class EpsFixed(Numpy):
    """1e-5 as in LLaMA, whatever the model says."""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        return super().rmsnorm(x, weight, eps=1e-5)


@wrong("rmsnorm")
class MeanOfOneLess(Numpy):
    """The sum of squares is divided by n - 1, as for an estimate of a variance."""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        n = x.shape[1]
        return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) / max(n - 1, 1) + np.float32(eps)) * weight


@wrong("rmsnorm")
class NormOfHalves(Numpy):
    """Squares are added up in float16, which ends at 65504."""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        square = np.mean(np.square(x).astype(np.float16), axis=-1, keepdims=True, dtype=np.float16).astype(np.float32)
        return x / np.sqrt(square + np.float32(eps)) * weight


@wrong("rmsnorm")
class NormOverwritesItsInput(Numpy):
    """Computes in place."""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        y = super().rmsnorm(x, weight, eps=eps)
        if x.flags.writeable:
            x *= weight
        return y


@wrong("layernorm")
class VarianceOfOneLess(Numpy):
    """The sum of squares is divided by n - 1, as torch.var does if not told otherwise."""

    @kernel(ops.layernorm)
    def layernorm(self, x, weight, bias, *, eps):
        variance = x.var(axis=1, keepdims=True, ddof=min(1, x.shape[1] - 1))
        return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(variance + np.float32(eps)) * weight + bias


@wrong("layernorm")
class VarianceInOnePass(Numpy):
    """mean(x^2) - mean(x)^2, which cancels where the mean is large."""

    @kernel(ops.layernorm)
    def layernorm(self, x, weight, bias, *, eps):
        mean = x.mean(axis=1, keepdims=True)
        variance = np.maximum((x * x).mean(axis=1, keepdims=True) - mean * mean, 0)
        return (x - mean) / np.sqrt(variance + np.float32(eps)) * weight + bias


@wrong("layernorm")
class DeviationAndEps(Numpy):
    """(x - mean(x)) / (sqrt(var(x)) + eps)"""

    @kernel(ops.layernorm)
    def layernorm(self, x, weight, bias, *, eps):
        return (x - x.mean(axis=1, keepdims=True)) / (x.std(axis=1, keepdims=True) + np.float32(eps)) * weight + bias


@wrong("layernorm")
class LayernormWithoutBias(Numpy):
    """The bias is forgotten: right for a model whose biases are zero."""

    @kernel(ops.layernorm)
    def layernorm(self, x, weight, bias, *, eps):
        return super().layernorm(x, weight, np.zeros_like(bias), eps=eps)


@wrong("layernorm")
class BiasBeforeWeight(Numpy):
    """The bias is added first, and multiplied by the weight too."""

    @kernel(ops.layernorm)
    def layernorm(self, x, weight, bias, *, eps):
        return super().layernorm(x, weight, bias * weight, eps=eps)


@wrong("layernorm")
class LayernormIsRmsnorm(Numpy):
    """The mean stays: nearly right where it is nearly zero."""

    @kernel(ops.layernorm)
    def layernorm(self, x, weight, bias, *, eps):
        return super().rmsnorm(x, weight, eps=eps) + bias


@wrong("layernorm")
class MeanOfAllRows(Numpy):
    """Mean and variance are those of all tokens of a step together."""

    @kernel(ops.layernorm)
    def layernorm(self, x, weight, bias, *, eps):
        return (x - x.mean()) / np.sqrt(x.var() + np.float32(eps)) * weight + bias


@wrong("softmax")
class SoftmaxWithoutMax(Numpy):
    """exp(x) / sum(exp(x)), which overflows at 88."""

    @kernel(ops.softmax)
    def softmax(self, x):
        e = np.exp(x)
        return e / e.sum(axis=-1, keepdims=True)


@wrong("softmax")
class SoftmaxMaxFromZero(Numpy):
    """The search for the largest begins with 0: rows of very negative scores vanish."""

    @kernel(ops.softmax)
    def softmax(self, x):
        e = np.exp(x - x.max(axis=-1, keepdims=True, initial=0))
        return e / e.sum(axis=-1, keepdims=True)


@wrong("softmax")
class SoftmaxMaxOfAll(Numpy):
    """The largest of all rows is taken away from each, not the row's own."""

    @kernel(ops.softmax)
    def softmax(self, x):
        e = np.exp(x - x.max())
        return e / e.sum(axis=-1, keepdims=True)


@wrong("softmax")
class SoftmaxForgetsTheTail(Numpy):
    """The sum is over whole groups of four."""

    @kernel(ops.softmax)
    def softmax(self, x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        whole = max(x.shape[-1] // 4 * 4, min(x.shape[-1], 4))
        return e / e[..., :whole].sum(axis=-1, keepdims=True)


@wrong("silu")
class SiluByTanh(Numpy):
    """sigmoid by a quick tanh, good to a thousandth."""

    @kernel(ops.silu)
    def silu(self, x):
        t = np.clip(x / 2, -3, 3)
        return x * np.float32(0.5) * (1 + t * (27 + t * t) / (27 + 9 * t * t))


@wrong("silu")
class SiluFastExp(Numpy):
    """exp by a trick with the exponent's bits, good to a thousandth."""

    @kernel(ops.silu)
    def silu(self, x):
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(-x) * (1 + np.float32(1e-3) * np.sin(50 * x)))


@wrong("silu")
class SiluOfLargeNumbers(Numpy):
    """x exp(x) / (1 + exp(x)): inf / inf for a large x."""

    @kernel(ops.silu)
    def silu(self, x):
        e = np.exp(x)
        return x * e / (1 + e)


@wrong("gelu")
class GeluByTanh(Numpy):
    """By the tanh formula, good to 5e-4, that GPT-2 has."""

    @kernel(ops.gelu)
    def gelu(self, x):
        return x * (1 + np.tanh(np.float32(0.7978846) * (x + np.float32(0.044715) * x**3))) / 2


@wrong("gelu")
class GeluBySigmoid(Numpy):
    """x * sigmoid(1.702 x), good to 0.02."""

    @kernel(ops.gelu)
    def gelu(self, x):
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(np.float32(-1.702) * x))


@wrong("gelu")
class GeluOfHalves(Numpy):
    """Looked up in a table of 65,536 entries, one for each float16."""

    @kernel(ops.gelu)
    def gelu(self, x):
        return super().gelu(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)


@wrong("gelu")
class GeluOfThreeTerms(Numpy):
    """erf by Abramowitz & Stegun 7.1.25, good to 2.5e-5."""

    @kernel(ops.gelu)
    def gelu(self, x):
        z = abs(x) * np.float32(0.5**0.5)
        t = 1 / (1 + np.float32(0.47047) * z)
        tail = t * (np.float32(0.3480242) + t * (np.float32(-0.0958798) + t * np.float32(0.7478556))) * np.exp(-z * z)
        return x * (1 + np.sign(x) * (1 - tail)) / 2


@wrong("gelu")
class GeluEndsEarly(Numpy):
    """Taken for x above 4, and for 0 below -4."""

    @kernel(ops.gelu)
    def gelu(self, x):
        return np.where(abs(x) < 4, super().gelu(x), np.maximum(x, 0))


@wrong("swiglu")
class SwigluSwapped(Numpy):
    """silu of the other operand."""

    @kernel(ops.swiglu)
    def swiglu(self, gate, up):
        return super().swiglu(up, gate)


@wrong("swiglu")
class SwigluIsGeglu(Numpy):
    """GELU by its tanh formula where SiLU is meant."""

    @kernel(ops.swiglu)
    def swiglu(self, gate, up):
        return gate * (1 + np.tanh(np.float32(0.7978846) * (gate + np.float32(0.044715) * gate**3))) / 2 * up


@wrong("add_bias")
class BiasTwice(Numpy):
    """The bias is added twice if there is more than one token."""

    @kernel(ops.add_bias)
    def add_bias(self, x, bias):
        return x + bias * (2 if len(x) > 1 else 1)


@wrong("add_bias")
class BiasOfTheFirstRow(Numpy):
    """Only the first token gets the bias."""

    @kernel(ops.add_bias)
    def add_bias(self, x, bias):
        y = x.copy()
        y[0] += bias
        return y


@wrong("add")
class AddInHalf(Numpy):
    """The residual connection in float16."""

    @kernel(ops.add)
    def add(self, a, b):
        return (a.astype(np.float16) + b.astype(np.float16)).astype(np.float32)


@wrong("add")
class AddInPlace(Numpy):
    """The sum takes the memory of its first operand."""

    @kernel(ops.add)
    def add(self, a, b):
        return np.add(a, b, out=a if a.flags.writeable else None)


@wrong("mul")
class MulForgetsTheTail(Numpy):
    """The last numbers, fewer than eight of them, are copied."""

    @kernel(ops.mul)
    def mul(self, a, b):
        y = a * b
        tail = y.size % 8
        y.reshape(-1)[y.size - tail :] = a.reshape(-1)[y.size - tail :]
        return y


@wrong("get_rows")
class RowsInOrder(Numpy):
    """The rows that are asked for, sorted."""

    @kernel(ops.get_rows)
    def get_rows(self, x, ids):
        return x[np.sort(ids)]


@wrong("get_rows")
class RowsOnce(Numpy):
    """The last rows, as many as are asked for: right for the one whose logits a step wants."""

    @kernel(ops.get_rows)
    def get_rows(self, x, ids):
        return x[np.arange(len(x) - len(ids), len(x))] if len(ids) <= len(x) else x[ids]


@wrong("get_rows")
class RowsAreAView(Numpy):
    """Rows that follow each other are not copied."""

    @kernel(ops.get_rows)
    def get_rows(self, x, ids):
        follow = len(ids) == 1 or (np.diff(ids) == 1).all()
        return x[int(ids[0]) : int(ids[0]) + len(ids)] if follow else x[ids]


@wrong("split_heads")
class HeadsInterleaved(Numpy):
    """Head i gets every h-th column."""

    @kernel(ops.split_heads)
    def split_heads(self, x, *, h):
        return x.reshape(len(x), -1, h).transpose(0, 2, 1)


@wrong("merge_heads")
class HeadsMergedByColumn(Numpy):
    """The first columns of all heads come first."""

    @kernel(ops.merge_heads)
    def merge_heads(self, x):
        return x.transpose(0, 2, 1).reshape(len(x), -1)
