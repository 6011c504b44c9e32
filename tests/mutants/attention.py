"""Wrong in attention: which keys a query sees, which head it reads, what becomes of the scores."""

from __future__ import annotations

import numpy as np

import ops
from backends.base import kernel
from backends.numpy import Numpy

from .mutant import wrong


class InParts(Numpy):
    """Right: attention in its parts, each of which a mutant may get wrong."""

    def head(self, i, group, k):
        return i // group

    def scores(self, q, keys, scale):
        return q @ keys.T * np.float32(scale)

    def hidden(self, positions, n_keys):
        return np.arange(n_keys) > positions[:, None]

    def shares(self, kq):
        e = np.exp(kq - kq.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def mixed(self, p, values, i):
        return p @ values

    @kernel(ops.attention)
    def attention(self, q, keys, values, positions, *, scale):
        (_, h, _), k = q.shape, keys.shape[1]
        heads = [self.head(i, h // k, k) for i in range(h)]
        hidden = self.hidden(positions, len(keys))
        y = [
            self.mixed(
                self.shares(np.where(hidden, np.float32(-np.inf), self.scores(q[:, i], keys[:, j], scale))), values[:, j], i
            )
            for i, j in enumerate(heads)
        ]
        return np.stack(y, axis=1).astype(np.float32)


@wrong("attention")
class HeadsInTurn(InParts):
    """Query head i reads key head i % k."""

    def head(self, i, group, k):
        return i % k


@wrong("attention")
class OneKeyHead(InParts):
    """All query heads read the first key head, as with multi-query attention."""

    def head(self, i, group, k):
        return 0


@wrong("attention")
class SeesTheNext(InParts):
    """The mask begins one key too late: a token sees the one after it."""

    def hidden(self, positions, n_keys):
        return np.arange(n_keys) > positions[:, None] + 1


@wrong("attention")
class BlindForItself(InParts):
    """The mask begins one key too early: a token does not see itself, unless there is no other."""

    def hidden(self, positions, n_keys):
        return (np.arange(n_keys) >= positions[:, None]) & (positions[:, None] > 0)


@wrong("attention")
class MaskByRow(InParts):
    """The mask takes the row for the position: right for a prompt, wrong when something was read before."""

    def hidden(self, positions, n_keys):
        return np.arange(n_keys) > np.arange(len(positions))[:, None]


@wrong("attention")
class NoMask(InParts):
    """No mask at all: right in decoding."""

    def hidden(self, positions, n_keys):
        return np.zeros((len(positions), n_keys), bool)


@wrong("attention")
class MaskOfTheFirstBlock(InParts):
    """Each block of 64 queries gets the first block's mask."""

    def hidden(self, positions, n_keys):
        return np.arange(n_keys) > positions[np.arange(len(positions)) % 64][:, None]


@wrong("attention")
class ScaleMissing(InParts):
    """Scores are not scaled."""

    def scores(self, q, keys, scale):
        return q @ keys.T


@wrong("attention")
class ScaleOfTheHead(InParts):
    """1 / sqrt(d), whatever scale the model gives."""

    def scores(self, q, keys, scale):
        return super().scores(q, keys, q.shape[1] ** -0.5)


@wrong("attention")
class ScoresInHalf(InParts):
    """Scores are rounded to float16."""

    def scores(self, q, keys, scale):
        return super().scores(q, keys, scale).astype(np.float16).astype(np.float32)


@wrong("attention")
class AttentionWithoutMax(InParts):
    """exp of the scores as they are."""

    def shares(self, kq):
        e = np.exp(kq)
        return e / e.sum(axis=-1, keepdims=True)


@wrong("attention")
class MaxOfTheFirstTile(InParts):
    """The largest of the first 32 scores is taken for the largest of all."""

    def shares(self, kq):
        e = np.exp(kq - kq[:, :32].max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)


@wrong("attention")
class SeventhHeadNotDivided(InParts):
    """The weights of one head are not divided by their sum."""

    def mixed(self, p, values, i):
        return p @ values / (p.max(axis=-1, keepdims=True) if i == 6 else 1)


@wrong("attention")
class ForgetsOldKeys(InParts):
    """Of more than 128 keys the first are not seen."""

    def hidden(self, positions, n_keys):
        return super().hidden(positions, n_keys) | ((np.arange(n_keys) < n_keys - 128) & (positions[:, None] >= n_keys - 128))


@wrong("attention")
class ManyKeys(InParts):
    """Keys are read in two parts if there are more than 512, and each part is a softmax of its own."""

    def shares(self, kq):
        parts = [kq[:, :512], kq[:, 512:]] if kq.shape[1] > 512 else [kq]
        with np.errstate(all="ignore"):
            return np.concatenate([np.nan_to_num(super(ManyKeys, self).shares(part)) for part in parts], axis=1)


@wrong("attention")
class ReadsOneKeyLess(Numpy):
    """In decoding, the last key of an odd number is not read."""

    @kernel(ops.attention)
    def attention(self, q, keys, values, positions, *, scale):
        n = len(keys) - 1 if len(q) == 1 and len(keys) % 2 and len(keys) > 1 else len(keys)
        return super().attention(q, keys[:n], values[:n], positions, scale=scale)


@wrong("law-attention-mean", "graph-layer", "attention")
class ReadsPastTheLastKey(Numpy):
    """Four keys at a time: those after the last one are whatever lies there."""

    @kernel(ops.attention)
    def attention(self, q, keys, values, positions, *, scale):
        spare = -len(keys) % 4
        if len(q) == 1 and spare and isinstance(keys.base, np.ndarray) and len(keys.base) >= len(keys) + spare:
            n = len(keys) + spare
            return super().attention(q, keys.base[:n], values.base[:n], positions + spare, scale=scale)
        return super().attention(q, keys, values, positions, scale=scale)


@wrong("attention")
class CacheRoundedToHalf(Numpy):
    """Keys and values go through float16 though the cache is float32."""

    @kernel(ops.attention)
    def attention(self, q, keys, values, positions, *, scale):
        keys, values = (x.astype(np.float16).astype(np.float32) for x in (keys, values))
        return super().attention(q, keys, values, positions, scale=scale)


@wrong("attention_scores")
class ScoresOfAnotherHead(Numpy):
    """Query head i reads key head i % k, in the unfused op."""

    @kernel(ops.attention_scores)
    def attention_scores(self, q, keys):
        k = keys.shape[1]
        return np.stack([q[:, i] @ keys[:, i % k].T for i in range(q.shape[1])])


@wrong("causal_mask")
class MaskOffByOne(Numpy):
    """A token sees the one after it, in the unfused op."""

    @kernel(ops.causal_mask)
    def causal_mask(self, kq, positions, *, scale):
        return ops.causal_mask.formula(kq, positions + 1, scale=scale)


@wrong("causal_mask")
class MaskIsFinite(Numpy):
    """-10000 instead of -inf, and before the scale."""

    @kernel(ops.causal_mask)
    def causal_mask(self, kq, positions, *, scale):
        later = np.arange(kq.shape[-1]) > positions[:, None]
        return np.where(later, np.float32(-1e4), kq) * np.float32(scale)


@wrong("attention_mix")
class MixRoundsWeights(Numpy):
    """The weights are rounded to float16 before they are multiplied."""

    @kernel(ops.attention_mix)
    def attention_mix(self, p, values):
        return ops.attention_mix.formula(p.astype(np.float16).astype(np.float32), values)


@wrong("attention_mix")
class MixAssumesSquareHeads(Numpy):
    """Values are read as if a query head had one of its own: the first ones."""

    @kernel(ops.attention_mix)
    def attention_mix(self, p, values):
        h, k = len(p), values.shape[1]
        return np.stack([p[i] @ values[:, min(i, k - 1)] for i in range(h)], axis=1)
