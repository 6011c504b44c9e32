"""Wrong in the product with a weight: precision, sizes that are no multiple of a tile, rows that mix."""

from __future__ import annotations

import numpy as np

import ops
from backends.base import kernel
from backends.numpy import Numpy

from .mutant import wrong


@wrong("matmul")
class AccumulatesInHalf(Numpy):
    """The sum is kept in float16, 32 products at a time."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        w, y = weight.dequantize(), np.zeros((len(x), weight.shape[0]), np.float16)
        for start in range(0, x.shape[1], 32):
            y += (x[:, start : start + 32] @ w[:, start : start + 32].T).astype(np.float16)
        return y.astype(np.float32)


@wrong("matmul")
class ProductOfTenBits(Numpy):
    """Operands are rounded as a tensor core's TF32 are."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        return super().matmul((np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), weight)


@wrong("matmul")
class QuantisesActivations(Numpy):
    """Activations are rounded to int8, 32 with a common scale."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        n = x.shape[1]
        padded = np.pad(x, ((0, 0), (0, -n % 32))).reshape(len(x), -1, 32)
        scale = np.maximum(abs(padded).max(-1, keepdims=True) / 127, np.float32(1e-30))
        return super().matmul((np.rint(padded / scale) * scale).reshape(len(x), -1)[:, :n], weight)


@wrong("matmul")
class OddLengths(Numpy):
    """Two columns at a time: the last one of an odd number is left out."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        n = x.shape[1]
        if n % 2 and n > 1:
            x = x.copy()
            x[:, -1] = 0
        return super().matmul(x, weight)


@wrong("matmul")
class LastRowLeftOut(Numpy):
    """The last output of an odd number is not computed."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        y = super().matmul(x, weight)
        if y.shape[1] % 2 and y.shape[1] > 1:
            y[:, -1] = 0
        return y


@wrong("matmul")
class ManyTokens(Numpy):
    """Tokens after the 64th get the results of the first ones."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        y = super().matmul(x, weight)
        y[64:] = y[: max(len(y) - 64, 0)]
        return y


@wrong("matmul")
class TokensByFour(Numpy):
    """Tokens that do not fill a group of four are computed without their last column."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        x = x.copy()
        if len(x) > 4:
            x[len(x) // 4 * 4 :, -1] = 0
        return super().matmul(x, weight)


@wrong("matmul")
class RowsMix(Numpy):
    """With three tokens, the second gets a thousandth of the first."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        if len(x) == 3:
            x = x.copy()
            x[1] += x[0] / 1000
        return super().matmul(x, weight)


@wrong("matmul")
class ReadsPastTheRow(Numpy):
    """Rows are read eight numbers at a time: the last ones come from the next row."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        w = weight.dequantize()
        n, spare = w.shape[1], -w.shape[1] % 8
        if not spare or n < 8:
            return super().matmul(x, weight)
        after = np.append(w.reshape(-1), np.zeros(8, np.float32))
        wide = np.stack([after[i * n : i * n + n + spare] for i in range(len(w))])
        return np.pad(x, ((0, 0), (0, spare)), mode="edge") @ wide.T


@wrong("matmul")
class ManyRows(Numpy):
    """Outputs from the 256th on are those of the row before."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        y = super().matmul(x, weight)
        y[:, 256:] = y[:, 255:-1]
        return y


@wrong("matmul")
class LongRows(Numpy):
    """Of more than 512 columns the rest is left out."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        x = x.copy()
        x[:, 512:] = 0
        return super().matmul(x, weight)


@wrong("embedding")
class ClampsTokens(Numpy):
    """Ids are clamped one too low: the last of the vocabulary is never reached."""

    @kernel(ops.embedding)
    def embedding(self, tokens, table):
        return ops.embedding.formula(np.minimum(tokens, max(table.shape[0] - 2, 0)), table)


@wrong("embedding")
class TokensInBytes(Numpy):
    """Ids are cut to eight bits."""

    @kernel(ops.embedding)
    def embedding(self, tokens, table):
        return ops.embedding.formula(tokens % 256, table)


@wrong("law-embedding-large", "embedding")
class TokensInSixteenBits(Numpy):
    """Ids are cut to sixteen bits."""

    @kernel(ops.embedding)
    def embedding(self, tokens, table):
        return ops.embedding.formula(tokens % 65536, table)


@wrong("embedding")
class EmbeddingInHalf(Numpy):
    """Vectors go through float16."""

    @kernel(ops.embedding)
    def embedding(self, tokens, table):
        return ops.embedding.formula(tokens, table).astype(np.float16).astype(np.float32)
